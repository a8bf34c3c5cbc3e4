"""Tasks on their way to the broker: written by the message contract, confirmed, and never without a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from broker_worker.amqp.connection import Connection, Link
from broker_worker.amqp.looking import has_queue
from broker_worker.amqp.publisher import DEADLINE, Publisher
from broker_worker.amqp.topology import Topology, check_queue_name
from broker_worker.client.background import Background
from broker_worker.errors import BrokerUnavailableError, PublishError
from broker_worker.events import ConnectionChanged, Event
from broker_worker.message import (
    DELIVER_AT,
    NOT_AFTER,
    NOT_HEADERS,
    TASK_ID,
    Message,
    Properties,
    TaskId,
    Undecodable,
    Unidentified,
    decode,
)
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.signing import Keyring, signed

OURS = ("x-", "bw-")


class NotConfirmedError(PublishError):
    """A task was not confirmed; it may have been sent. Safe to publish again under the same `id`."""

    def __init__(self, id: str, detail: str) -> None:  # noqa: A002 - the word of the message contract
        super().__init__(f"task {id!r} was not confirmed: {detail}")
        self.id = id


class Publishing:
    """A connection for publishing, made at the first publish and kept up until closed."""

    def __init__(
        self,
        reveal_url: Callable[[], str],
        *,
        prefix: str,
        owner: str,
        deadline: float = DEADLINE,
        is_patient: bool = True,
    ) -> None:
        """Prepare; `deadline` is in seconds, for one publish, the wait for a connection included.

        What is not patient does not wait where a connection can't be made.
        """
        self._topology = Topology(prefix, ())
        self._deadline = deadline
        self._is_patient = is_patient
        self._line = _Line(reveal_url, self._note, owner)
        self._publisher = Publisher(self._line, self._topology, emit=self._note, deadline=deadline)
        self._running = Background(self._publisher.run, on_end=self._line.up.set)
        self._looking = asyncio.Lock()
        self._fault = ""

    async def publish(self, outgoing: Outgoing) -> None:
        """Return once the broker has confirmed `outgoing` and its queue exists.

        Raises:
            ConfigurationError: the URL can't be used, or no queue can have this name.
            PublishError: it is not confirmed; the text says why.
        """
        check_queue_name(outgoing.routing_key)
        try:
            async with asyncio.timeout(self._deadline):
                await self._see_queue(outgoing.routing_key)
                await self._publisher.publish(outgoing)
        except TimeoutError as error:
            raise PublishError(self._fault or "no answer in time") from error
        except PublishError:
            self._line.seen.discard(outgoing.routing_key)
            raise
        except BrokerUnavailableError as error:
            raise PublishError(str(error)) from error

    async def close(self) -> None:
        """Close the connection, within 5 s."""
        await self._publisher.close()
        await self._running.close()

    async def _see_queue(self, queue: str) -> None:
        """Look for the queue first: the exchange's alternate would confirm a message that leads nowhere.

        Once on each connection, and again after a failure.
        """
        self._running.need()
        await self._line.is_usable()
        self._running.need()
        async with self._looking:
            if queue not in self._line.seen:
                await self._look(self._topology.work_queue(queue))
                self._line.seen.add(queue)

    async def _look(self, work_queue: str) -> None:
        connection = self._line.connection
        if connection is None:
            raise PublishError(self._fault or "the connection was lost")
        if not await has_queue(connection, work_queue):
            raise PublishError(f"there is no queue {work_queue}: see `broker-worker topology apply`")

    def _note(self, event: Event) -> None:
        if isinstance(event, ConnectionChanged):
            self._fault = "" if event.is_up else event.detail
            if not event.is_up and not self._is_patient:
                self._line.up.set()


class _Line(Link):
    """A link that shows its connection, on which queues were seen."""

    def __init__(self, reveal_url: Callable[[], str], emit: Callable[[Event], None], owner: str) -> None:
        super().__init__("publish", reveal_url, emit, owner=owner)
        self.connection: Connection | None = None
        self.up = asyncio.Event()
        self.seen: set[str] = set()

    async def is_usable(self) -> None:
        """Wait for a connection that is not lost yet, or for `up` to be set by others."""
        if self.connection is not None and not self.connection.is_open:
            self.up.clear()
        await self.up.wait()

    async def run(self, serve: Callable[[Connection], Awaitable[None]]) -> None:
        async def shown(connection: Connection) -> None:
            self.connection, self.seen = connection, set()
            self.up.set()
            try:
                await serve(connection)
            finally:
                self.up.clear()
                self.connection = None

        await super().run(shown)


def task_outgoing(
    task: TaskId,
    body: bytes,
    *,
    now: datetime,
    app_id: str,
    deliver_at: datetime | None = None,
    not_after: datetime | None = None,
    headers: Mapping[str, object] | None = None,
    correlation_id: str | None = None,
    keyring: Keyring | None = None,
) -> Outgoing:
    """Build the publish of a new task, signed if there is a `keyring`.

    Raises:
        ValueError: it would break the message contract; the text says where.
    """
    for name in headers or ():
        check_header(name)
    ours: dict[str, object] = {**(headers or {}), TASK_ID: task.id}
    times = {DELIVER_AT: deliver_at, NOT_AFTER: not_after}
    ours |= {name: moment.isoformat() for name, moment in times.items() if moment is not None}
    properties = Properties(
        type=task.name,
        content_type="application/json",
        correlation_id=correlation_id,
        app_id=app_id,
        timestamp=now.astimezone(UTC).replace(microsecond=0),
        headers=ours,
    )
    match decode(properties, body, queue=task.queue, now=now, max_body_bytes=len(body)):
        case Undecodable(_, failure):
            raise ValueError(failure.message)
        case Unidentified():
            raise ValueError("the task id is empty")
        case Message():
            outgoing = Outgoing(Kind.COPY, task.queue, properties, body)
            return outgoing if keyring is None else signed(outgoing, keyring)


def check_header(name: str) -> None:
    """Raise ValueError for a header that publishers can't set."""
    if not name or name.startswith(OURS) or name.lower() in NOT_HEADERS:
        raise ValueError(f"{name!r} is a header that publishers can't set")

"""Where handlers are seen at work: in the harness, and on real services with the daemon as a process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack
from uuid import uuid4

import aio_pika

from broker_worker.message import DELIVER_AT, NOT_AFTER
from broker_worker.outcome import Cancelled, Dead, Postponed
from broker_worker.store.database import Database
from broker_worker.store.dead_letters import Desk
from broker_worker.store.interventions import cancel_task
from broker_worker.store.queries import TaskLookup
from broker_worker.task import TERMINAL
from broker_worker.testing import Harness, VirtualLoop
from broker_worker.testing.publishing import PublishOptions, as_timedelta
from tests.e2e.conftest import Service, message
from tests.support import stage_handlers
from tests.support.daemon import until
from tests.support.services import RunningServers, fresh_broker, fresh_database

T = TypeVar("T")
ENDED = frozenset(map(str, TERMINAL))


@dataclass(frozen=True)
class Seen:
    """A task, as every stage can show it."""

    state: str
    result: Any
    attempt: int
    reason: str | None
    error_type: str | None
    progress: float | None
    failed: list[tuple[int, str]] = field(default_factory=list)  # attempts that did not succeed, and how


@dataclass(frozen=True)
class Letter:
    reason: str
    payload: Any


@dataclass(frozen=True)
class Arrived:
    """A reply or an event, where it was received."""

    routing_key: str
    correlation_id: str | None
    payload: Any


class Stage(Protocol):
    """One worker with `tests.support.stage_handlers`, and the world around it."""

    replies_to: str  # a queue that the settings allow
    exchange: str  # for events

    def publish(self, name: str, payload: object = None, **options: Unpack[PublishOptions]) -> str: ...

    def until(self, id_: str, is_so: Callable[[Seen], bool]) -> Seen:
        """Wait until a task is as it should be."""

    def cancel(self, id_: str) -> None: ...

    def replay(self, id_: str) -> None: ...

    def letters(self, id_: str) -> list[Letter]:
        """What is open; waits for the first."""

    def replies(self, correlation_id: str) -> list[Arrived]: ...

    def events(self) -> list[Arrived]:
        """What has arrived since the last look; at least one, or it fails."""

    def is_known(self, id_: str) -> bool: ...


def until_ended(stage: Stage, id_: str) -> Seen:
    return stage.until(id_, lambda seen: seen.state in ENDED)


# --- in memory -----------------------------------------------------------------------


class HarnessStage:
    """The harness; between two calls its loop stands still."""

    replies_to = "replies"
    exchange = "events"

    def __init__(self, harness: Harness, runner: asyncio.Runner) -> None:
        self._harness = harness
        self._runner = runner
        self._events_seen = 0

    def publish(self, name: str, payload: object = None, **options: Unpack[PublishOptions]) -> str:
        return self._run(self._harness.publish(name, payload, **options))

    def until(self, id_: str, is_so: Callable[[Seen], bool]) -> Seen:
        self._run(self._harness.until(lambda: self.is_known(id_) and is_so(self._see(id_))))
        return self._see(id_)

    def cancel(self, id_: str) -> None:
        self._run(self._harness.cancel(id_))

    def replay(self, id_: str) -> None:
        self._run(self._harness.replay(id_))

    def letters(self, id_: str) -> list[Letter]:
        return [
            Letter(each.reason, each.payload) for each in self._harness.dead_letters if each.task_id == id_
        ]

    def replies(self, correlation_id: str) -> list[Arrived]:
        self._run(self._harness.drain())
        replies = [
            Arrived(each.routing_key, each.correlation_id, each.payload) for each in self._harness.replies
        ]
        return [each for each in replies if each.correlation_id == correlation_id]

    def events(self) -> list[Arrived]:
        self._run(self._harness.drain())
        events = self._harness.events[self._events_seen :]
        self._events_seen += len(events)
        assert {each.exchange for each in events} == {self.exchange}
        return [Arrived(each.routing_key, each.correlation_id, each.payload) for each in events]

    def is_known(self, id_: str) -> bool:
        return any(view.id == id_ for view in self._harness.tasks())

    def _see(self, id_: str) -> Seen:
        view = self._harness.task(id_)
        failed = []
        for each in view.attempts:
            match each.outcome:
                case Postponed(reason=reason):
                    failed.append((each.number, str(reason or "failed")))
                case Dead(reason=reason):
                    failed.append((each.number, str(reason)))
                case Cancelled():
                    failed.append((each.number, "cancelled"))
                case _:
                    pass
        return Seen(
            state=view.state,
            result=view.result,
            attempt=view.attempt,
            reason=view.reason,
            error_type=view.error_type,
            progress=view.progress,
            failed=failed,
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


@contextmanager
def harness_stage() -> Iterator[HarnessStage]:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        harness = Harness(
            stage_handlers.registry, unknown_task_grace=timedelta(0), reply_to=(HarnessStage.replies_to,)
        )
        runner.run(harness.__aenter__())
        try:
            yield HarnessStage(harness, runner)
        finally:
            runner.run(harness.__aexit__(None, None, None))


# --- on real services ----------------------------------------------------------------


class ServicesStage:
    """RabbitMQ, Postgres, and a daemon."""

    def __init__(self, service: Service) -> None:
        self.replies_to = f"{service.prefix}.stage-replies"
        self.exchange = f"{service.prefix}.stage-events"
        self._service = service

    def begin(self) -> None:
        self._service.settings = {
            "HANDLERS": stage_handlers.__name__,
            "REPLY_TO": self.replies_to,
            "DATABASE_DIRECT_URL": self._service.database_url,
        }
        self._service.start()
        asyncio.run(self._with_channel(self._declare))

    def publish(self, name: str, payload: object = None, **options: Unpack[PublishOptions]) -> str:
        id_, now = options.get("id", uuid4().hex), datetime.now(UTC)
        headers: dict[str, str] = {}
        if "delay" in options:
            headers[DELIVER_AT] = (now + as_timedelta(options["delay"])).isoformat()
        if isinstance(not_after := options.get("not_after"), datetime):
            headers[NOT_AFTER] = not_after.isoformat()
        properties = {key: options.get(key) for key in ("correlation_id", "reply_to")}
        once = message(name, id_, payload, headers=headers, **properties)
        self._service.publish(*[once] * options.get("times", 1))
        return id_

    def until(self, id_: str, is_so: Callable[[Seen], bool]) -> Seen:
        def look() -> Seen | None:
            seen = self._see(id_) if self.is_known(id_) else None
            return seen if seen is not None and is_so(seen) else None

        seen = until(f"task {id_} is as it should be", look)
        assert seen is not None
        return seen

    def cancel(self, id_: str) -> None:
        asyncio.run(
            self._with_database(lambda database: cancel_task(database, TaskLookup(id_), actor="stage"))
        )

    def replay(self, id_: str) -> None:
        (letter,) = self._service.rows(
            f"SELECT id FROM dead_letters WHERE message_id = '{id_}' AND resolved_at IS NULL"
        )
        asyncio.run(self._with_database(lambda database: Desk(database).replay(letter["id"], actor="stage")))

    def letters(self, id_: str) -> list[Letter]:
        query = f"SELECT reason, body FROM dead_letters WHERE message_id = '{id_}' AND resolved_at IS NULL"
        rows = until(f"{id_} has a dead letter", lambda: self._service.rows(query))
        return [Letter(row["reason"], json.loads(row["body"])) for row in rows]

    def replies(self, correlation_id: str) -> list[Arrived]:
        return [each for each in self._received(self.replies_to) if each.correlation_id == correlation_id]

    def events(self) -> list[Arrived]:
        return self._received(self.exchange)

    def is_known(self, id_: str) -> bool:
        return bool(self._service.rows(f"SELECT 1 FROM tasks WHERE message_id = '{id_}'"))

    def _see(self, id_: str) -> Seen:
        row = self._service.task(id_)
        attempts = self._service.rows(
            f"SELECT attempt, outcome FROM attempts WHERE task_key = {row['key']} ORDER BY epoch"
        )
        return Seen(
            state=row["state"],
            result=json.loads(row["result"]) if row["result"] is not None else None,
            attempt=row["attempt"],
            reason=row["reason"],
            error_type=row["error_type"],
            progress=row["progress"],
            failed=[(each["attempt"], each["outcome"]) for each in attempts],
        )

    def _received(self, queue: str) -> list[Arrived]:
        return until(f"something is in {queue}", lambda: asyncio.run(self._with_channel(_getting(queue))))

    async def _declare(self, channel: aio_pika.abc.AbstractChannel) -> None:
        await channel.declare_queue(self.replies_to)
        exchange = await channel.declare_exchange(self.exchange, "topic")
        await (await channel.declare_queue(self.exchange)).bind(exchange, "#")

    async def _with_channel(self, work: Callable[[aio_pika.abc.AbstractChannel], Awaitable[T]]) -> T:
        async with await aio_pika.connect(self._service.amqp_url) as connection:
            return await work(await connection.channel())

    async def _with_database(self, work: Callable[[Database], Awaitable[object]]) -> None:
        url = self._service.database_url
        database = Database.open(lambda: url, schema="broker_worker", pool_size=1)
        try:
            await work(database)
        finally:
            await database.close()


def _getting(name: str) -> Callable[[aio_pika.abc.AbstractChannel], Awaitable[list[Arrived]]]:
    async def get(channel: aio_pika.abc.AbstractChannel) -> list[Arrived]:
        queue = await channel.declare_queue(name, passive=True)
        arrived = []
        while (found := await queue.get(no_ack=True, fail=False)) is not None:
            arrived.append(Arrived(found.routing_key or "", found.correlation_id, json.loads(found.body)))
        return arrived

    return get


@contextmanager
def services_stage(running: RunningServers, folder: Path) -> Iterator[ServicesStage]:
    with fresh_broker(running.servers) as broker, fresh_database(running) as url, ExitStack() as processes:
        stage = ServicesStage(Service(broker.url, url, broker.prefix, folder, processes))
        stage.begin()
        yield stage

"""The client of a program with an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self, Unpack, overload
from uuid import uuid4

from broker_worker.client.overloads import (
    ClientOptions,
    HasRun,
    Model,
    PublishOptions,
    Takes,
    TakesMembers,
    TakesNothing,
    TakesSecond,
)
from broker_worker.client.publishing import NotConfirmedError, Publishing, task_outgoing
from broker_worker.client.waiting import APPLICATION, Tasks, Waiting
from broker_worker.errors import ConfigurationError, PublishError
from broker_worker.failure import Refusal
from broker_worker.message import TaskId
from broker_worker.outgoing import Outgoing
from broker_worker.payload import function_name
from broker_worker.registry import Registry
from broker_worker.secret import Secret
from broker_worker.sending import PayloadError, write_payload
from broker_worker.settings import Settings
from broker_worker.signing import Keyring
from broker_worker.store.audit import default_actor
from broker_worker.store.interventions import cancel_task
from broker_worker.store.queries import TaskLookup
from broker_worker.store.status import TaskStatus

JSON = "application/json"


class Client:
    """Publishes tasks and asks about them; servers are connected when they are first needed.

    For one event loop, and there for any number of tasks at once. Use it as an async context
    manager, or call `close` in the end.
    """

    def __init__(
        self,
        *,
        amqp_url: str | Secret | None = None,
        database_url: str | Secret | None = None,
        direct_url: str | Secret | None = None,
        prefix: str = "bw",
        schema: str = "broker_worker",
        registry: Registry | None = None,
        queue: str | None = None,
        publish_timeout: timedelta | float = 30.0,
        signing_keys: str | Secret | None = None,
    ) -> None:
        """Prepare; `publish` needs the `amqp_url`, everything else the `database_url`.

        Args:
            amqp_url: RabbitMQ, as the worker's BROKER_WORKER_AMQP_URL.
            database_url: the worker's Postgres; a pooler is fine.
            direct_url: the same Postgres past a transaction pooler, so that `wait` is told; else it asks.
            prefix: the worker's.
            schema: the worker's.
            registry: where handlers that are published have their names.
            queue: where tasks go that name none; `default` if not given.
            publish_timeout: for one publish, the wait for a connection included; seconds or timedelta.
            signing_keys: as BROKER_WORKER_SIGNING_KEYS; with it, tasks are signed by the first one.
        """
        self._amqp_url = _secret(amqp_url, "amqp_url")
        self._database_url = _secret(database_url, "database_url")
        self._direct_url = _secret(direct_url, "direct_url")
        keys = _secret(signing_keys, "signing_keys")
        self._keyring = Keyring(keys.reveal) if keys.is_set else None
        self._registry = registry
        self._queue = queue or "default"
        self._publishing = Publishing(
            self._amqp_url.reveal,
            prefix=prefix,
            owner=APPLICATION,
            deadline=_seconds(publish_timeout),
        )
        self._tasks = Tasks(self._database_url.reveal, schema=schema)
        self._waiting = Waiting(self._tasks, self._direct_url, schema=schema)

    @classmethod
    def from_environment(cls, *, registry: Registry | None = None, queue: str | None = None) -> Self:
        """Take servers, prefix and schema from the variables that the worker reads.

        Without a `queue`, tasks go to the only one of BROKER_WORKER_QUEUES, or else to `default`.

        Raises:
            ConfigurationError: one line per variable that is wrong; one that is missing is
                not, before it is needed.
        """
        return cls(**environment_options(os.environ, registry=registry, queue=queue))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, within seconds; the client can't be used any more."""
        await self._publishing.close()
        await self._waiting.close()
        await self._tasks.close()

    @overload
    async def publish(self, task: str, payload: object = None, **options: Unpack[PublishOptions]) -> str: ...
    @overload
    async def publish(
        self, task: type[HasRun[Model]], payload: Model, **options: Unpack[PublishOptions]
    ) -> str: ...
    @overload
    async def publish(self, task: Takes[Model], payload: Model, **options: Unpack[PublishOptions]) -> str: ...
    @overload
    async def publish(
        self, task: TakesSecond[Model], payload: Model, **options: Unpack[PublishOptions]
    ) -> str: ...
    @overload
    async def publish(self, task: TakesNothing, **options: Unpack[PublishOptions]) -> str: ...
    @overload
    async def publish(
        self, task: TakesMembers, payload: Mapping[str, object], **options: Unpack[PublishOptions]
    ) -> str: ...

    async def publish(
        self,
        task: str | Callable[..., object],
        payload: object = None,
        **options: Unpack[PublishOptions],
    ) -> str:
        """Publish a task; its id, once the broker has confirmed it and a queue has it.

        `task` is a handler of the registry, whose name and payload type are then known, or a
        name. The payload is what pydantic can make JSON of: the handler's model, or a
        mapping of its members; none is the empty object. Type checkers check a model against
        a handler whose first parameter it is, or the first after the context; a mapping is checked
        before it is sent.

        Options:
            id: the task's id, a fresh one if not given; the same id again is no new task.
            queue: else the client's.
            delay: run it not before; seconds or timedelta from now on.
            not_after: run it not after; an aware datetime, or seconds or timedelta from now on.
            headers: headers of your own.
            correlation_id: is kept with the task, for those who look.

        Raises:
            PayloadError: the payload can't become JSON, or is not what the handler takes.
            ConfigurationError: the handler is not of the registry, or there is no usable amqp_url.
            ValueError: an id, a name, a header or a time breaks the message contract.
            NotConfirmedError: there is no such queue, or the broker did not confirm in time. It may
                have been sent; it is safe to publish again with the error's `id`.
        """
        self._need(self._amqp_url, "publishing", "amqp_url")
        outgoing, task_id = self._outgoing(task, payload, **options)
        try:
            await self._publishing.publish(outgoing)
        except PublishError as error:
            raise NotConfirmedError(task_id, str(error)) from error
        return task_id

    async def cancel(
        self,
        id: str,  # noqa: A002 - the word of the message contract
        *,
        queue: str | None = None,
        name: str | None = None,
        actor: str | None = None,
    ) -> bool:
        """Cancel a task: at once where it waits; where it runs, its worker is asked to. Repeatable.

        Whether it is cancelled or asked for; not so where it has ended already. `queue` and
        `name` tell tasks with the same id apart. `actor` is for the audit, the user that this
        program runs as if not given.

        Raises:
            NoSuchTaskError: none is known; it may be on its way.
            AmbiguousTaskError: there are several.
            ConfigurationError: there is no usable database_url.
            SchemaError: the schema does not fit, or this role lacks a right on it.
            StoreUnavailableError: Postgres can't be reached.
        """
        self._need(self._database_url, "cancelling", "database_url")
        async with self._tasks.database() as database:
            verdict = await cancel_task(database, TaskLookup(id, queue, name), actor=actor or default_actor())
        return verdict.is_done

    async def status(
        self,
        id: str,  # noqa: A002 - the word of the message contract
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> TaskStatus | None:
        """Look where a task stands; nothing where none is known: on its way, never sent, or pruned.

        Raises:
            AmbiguousTaskError: there are several, in other queues or under other names.
            ConfigurationError: there is no usable database_url.
            SchemaError: the schema does not fit, or this role lacks a right on it.
            StoreUnavailableError: Postgres can't be reached.
        """
        self._need(self._database_url, "asking for a status", "database_url")
        found = await self._tasks.find(TaskLookup(id, queue, name))
        return found.status if found is not None else None

    async def wait(
        self,
        id: str,  # noqa: A002 - the word of the message contract
        *,
        queue: str | None = None,
        name: str | None = None,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - it says which task
    ) -> TaskStatus:
        """Wait until a task has ended, however; also one that no worker has received yet.

        It is told at once with a `direct_url`, else it looks once a second. `timeout` is in
        seconds or a timedelta; without one it waits for ever, also through an outage of Postgres.

        Raises:
            TimeoutError: it has not ended in this time.
            AmbiguousTaskError: there are several, in other queues or under other names.
            ConfigurationError: there is no usable database_url.
            SchemaError: the schema does not fit, or this role lacks a right on it.
            StoreUnavailableError: Postgres can't be reached at the beginning.
        """
        self._need(self._database_url, "waiting", "database_url")
        lookup = TaskLookup(id, queue, name)
        limit = asyncio.timeout(None if timeout is None else _seconds(timeout))
        try:
            async with limit:
                return await self._waiting.wait(lookup)
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(
                    f"the task {lookup} has not ended in {_seconds(timeout or 0):g} s"
                ) from error
            raise

    def _outgoing(
        self,
        task: str | Callable[..., object],
        payload: object,
        *,
        id: str | None = None,  # noqa: A002
        queue: str | None = None,
        delay: timedelta | float = 0,
        not_after: datetime | timedelta | float | None = None,
        headers: Mapping[str, object] | None = None,
        correlation_id: str | None = None,
    ) -> tuple[Outgoing, str]:
        now = datetime.now(UTC)
        wait = _seconds(delay)
        if wait < 0:
            raise ValueError("the delay of a task is not negative")
        name, body = self._read(task, payload)
        identity = TaskId(queue or self._queue, name, uuid4().hex if id is None else id)
        outgoing = task_outgoing(
            identity,
            body,
            now=now,
            app_id=APPLICATION,
            deliver_at=now + timedelta(seconds=wait) if wait else None,
            not_after=None if not_after is None else _moment(not_after, now),
            headers=headers,
            correlation_id=correlation_id,
            keyring=self._keyring,
        )
        return outgoing, identity.id

    def _read(self, task: str | Callable[..., object], payload: object) -> tuple[str, bytes]:
        """Find the name, and the body that its handler takes."""
        body = write_payload({} if payload is None else payload)
        if isinstance(task, str):
            return task, body
        name = self._registry.name_of(task) if self._registry else None
        handler = self._registry.lookup(name) if self._registry and name else None
        if handler is None:
            raise ConfigurationError(
                f"{function_name(task)} is not a task of the client's registry: give that to the client, "
                "or publish by the task's name"
            )
        try:
            handler.bind(body, JSON)
        except Refusal as refusal:
            raise PayloadError(f"not a payload of {handler.name!r}: {refusal.failure.message}") from None
        return handler.name, body

    @staticmethod
    def _need(url: Secret, what: str, name: str) -> None:
        if not url.is_set:
            raise ConfigurationError(f"{what} needs the client's {name} (BROKER_WORKER_{name.upper()})")


def environment_options(
    environ: Mapping[str, str], *, registry: Registry | None, queue: str | None
) -> ClientOptions:
    """Read what a client is made with from the worker's variables."""
    settings = Settings.load(environ)
    only = next(iter(settings.queues)) if len(settings.queues) == 1 else None
    return ClientOptions(
        amqp_url=settings.amqp_url,
        database_url=settings.database_url,
        direct_url=settings.database_direct_url,
        prefix=settings.prefix,
        schema=settings.database_schema,
        registry=registry,
        queue=queue or only,
        signing_keys=settings.signing_keys,
    )


def _secret(url: str | Secret | None, name: str) -> Secret:
    return url if isinstance(url, Secret) else Secret(name, value=url)


def _seconds(duration: timedelta | float) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def _moment(time: datetime | timedelta | float, now: datetime) -> datetime:
    if not isinstance(time, datetime):
        return now + timedelta(seconds=_seconds(time))
    if time.tzinfo is None:
        raise ValueError("not_after is a time without a time zone")
    return time

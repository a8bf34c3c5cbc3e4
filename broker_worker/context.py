"""What a handler sees of its task, and what it may do beside returning."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from pydantic import TypeAdapter

from broker_worker.errors import BrokerWorkerError
from broker_worker.message import Message, TaskId, check_identity
from broker_worker.payload import Injected
from broker_worker.retry import LONGEST_DELAY
from broker_worker.sending import Sent, SentEvent, SentTask, write_payload

T = TypeVar("T")
MAX_SHORT_BYTES = 255  # of a short string in AMQP 0-9-1 (section 4.2.5.3)
AnyHandler = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Completion:
    """The statement that ends a task within a transaction of the handler's own.

    It raises inside the database where the attempt is not this worker's any more, so that
    the transaction can't commit. `parameters` belong to the `%s` in `sql`: the style
    of psycopg, Django and most drivers of the DB-API (PEP 249, format).
    """

    sql: str
    parameters: tuple[object, ...]


class Hands(Protocol):
    """What a context can do; the worker gives each attempt its own."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the attempt has been asked to stop."""

    def report_progress(self, fraction: float, note: str) -> None:
        """Take note; from any thread, without waiting."""

    async def save(self, state: str) -> None:
        """Commit a checkpoint, JSON."""

    def save_from_thread(self, state: str) -> None:
        """Do what `save` does, and block until it is done."""

    def send(self, sent: Sent) -> None:
        """Keep what is to leave with the outcome."""

    def name_of(self, task: AnyHandler | str) -> str:
        """Find the name under which a handler is registered."""

    def complete(self, result: object) -> Completion:
        """Build the one statement that ends this attempt."""

    def complete_json(self, result: str | None) -> Completion:
        """Do what `complete` does, with a result that is JSON already."""


class NoHands:
    """For contexts without a worker: what would reach out does nothing or says that it can't."""

    is_cancelled = False

    def report_progress(self, fraction: float, note: str) -> None:
        """Forget it."""

    async def save(self, state: str) -> None:
        """Forget it."""

    def save_from_thread(self, state: str) -> None:
        """Forget it."""

    def send(self, sent: Sent) -> None:
        """Forget it."""

    def name_of(self, task: AnyHandler | str) -> str:
        return task if isinstance(task, str) else getattr(task, "__qualname__", repr(task))

    def complete(self, result: object) -> Completion:  # noqa: ARG002 - the protocol's signature
        raise BrokerWorkerError("there is no worker, and so nothing to complete")

    def complete_json(self, result: str | None) -> Completion:
        return self.complete(result)


@dataclass(frozen=True, slots=True)
class BaseContext(Injected):
    """The facts about an attempt: what `Context` and `SyncContext` share."""

    message: Message
    attempt: int  # 1 is the first
    max_attempts: int
    may_be_repeat: bool  # part of this work may have been done before: a later attempt, or a takeover
    deadline: datetime  # UTC; the attempt is ended then
    saved_json: str | None = field(default=None, repr=False)
    hands: Hands = field(default_factory=NoHands, repr=False, compare=False)

    @property
    def task_id(self) -> str:
        """The publisher's id of the task: the same on every attempt."""
        return self.message.task.id

    @property
    def name(self) -> str:
        """The task's name."""
        return self.message.task.name

    @property
    def queue(self) -> str:
        """The queue that it came in, without prefix."""
        return self.message.task.queue

    @property
    def is_cancelled(self) -> bool:
        """Whether the attempt has been asked to stop: by an operator, its timeout, or the worker's end.

        A thread can't be stopped from outside: a long one asks here between its steps.
        """
        return self.hands.is_cancelled

    def raise_if_cancelled(self) -> None:
        """End the attempt here if it has been asked to stop; raises `asyncio.CancelledError`."""
        if self.is_cancelled:
            raise asyncio.CancelledError

    @property
    def saved(self) -> Any:  # noqa: ANN401 - whatever the handler gave to `checkpoint`, as JSON has it
        """The state of the last checkpoint; `None` where there is none."""
        return None if self.saved_json is None else json.loads(self.saved_json)

    def saved_as(self, kind: type[T]) -> T | None:
        """Read the state of the last checkpoint as `kind`, by pydantic; raise its `ValidationError`."""
        return None if self.saved_json is None else TypeAdapter(kind).validate_json(self.saved_json)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry `log_fields`."""
        return _TaskLogger(logging.getLogger(self.name), self.log_fields())

    def log_fields(self) -> Mapping[str, object]:
        """What every line about this attempt carries; no key is one of `logging.LogRecord`'s own."""
        fields: dict[str, object] = {
            "task": self.name,
            "task_id": self.task_id,
            "queue": self.queue,
            "attempt": self.attempt,
        }
        trace_id = self.message.trace_id
        return fields if trace_id is None else {**fields, "trace_id": trace_id}

    def completion(self, result: object = None) -> Completion:
        """Ask for the statement that ends this task, for a transaction of the handler's own.

        For a driver that the worker does not know, on the worker's own database: execute it as
        the last statement before the commit. `result` is the task's result; what the
        handler returns is then of no account. Once asked for, it has to be committed:
        a handler that returns without has failed. What is sent by the context can't be part
        of it, so nothing may be sent.

        Raises:
            BrokerWorkerError: something was sent already, or the result can't be kept.
        """
        return self.hands.complete(result)

    def _report(self, fraction: float, note: str) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction}")
        self.hands.report_progress(float(fraction), note)

    def _send(
        self,
        task: AnyHandler | str,
        payload: object,
        *,
        queue: str | None,
        delay: timedelta | float,
        task_id: str | None,
    ) -> str:
        identity = TaskId(
            self.queue if queue is None else queue,
            self.hands.name_of(task),
            uuid4().hex if task_id is None else task_id,
        )
        wait = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
        if wait < timedelta(0):
            raise ValueError("the delay of a task is not negative")
        message = Message(
            task=identity,
            body=write_payload({} if payload is None else payload),
            content_type="application/json",
            correlation_id=self.message.correlation_id,
            headers=self.message.inherited_headers,
        )
        check_identity(identity)
        if wait > LONGEST_DELAY:
            raise ValueError(f"the delay of a task is at most {LONGEST_DELAY.days} days")
        self.hands.send(SentTask(message, wait))
        return identity.id

    def _send_event(self, payload: object, exchange: str, routing_key: str) -> None:
        if max(len(name.encode()) for name in (exchange, routing_key)) > MAX_SHORT_BYTES:
            raise ValueError(f"an exchange and a routing key have at most {MAX_SHORT_BYTES} bytes")
        if "\0" in exchange + routing_key:
            raise ValueError("an exchange and a routing key hold no NUL")
        self.hands.send(SentEvent(exchange, routing_key, write_payload(payload)))


@dataclass(frozen=True, slots=True)
class Context(BaseContext):
    """The attempt that an async handler runs in, by a parameter with this annotation."""

    async def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the attempt is, 0 to 1, as often as you like: it is written once a second."""
        self._report(fraction, note)

    async def checkpoint(self, state: object) -> None:
        """Save `state`, anything that pydantic makes JSON of, for the next attempt's `saved`.

        Returns after its commit. In a transactional handler it leaves nothing, and only sees that the
        attempt is still this worker's: the transaction is its checkpoint.

        Raises:
            PayloadError: it can't become JSON.
            ClaimLostError: the attempt is not this worker's any more: another may run.
            StoreUnavailableError: Postgres can't; it may be saved or not.
        """
        await self.hands.save(write_payload(state).decode())

    async def send(
        self,
        task: AnyHandler | str,
        payload: object = None,
        *,
        queue: str | None = None,
        delay: timedelta | float = 0,
        id: str | None = None,  # noqa: A002 - the word of the message contract
    ) -> str:
        """Send a task: a handler or a name, into this queue or another of the service; its id.

        It leaves in the commit of this attempt's success; an attempt that fails sends nothing.
        `delay` is a timedelta or seconds. An id that is known already makes no second task.

        Raises:
            PayloadError: the payload can't become JSON.
        """
        return self._send(task, payload, queue=queue, delay=delay, task_id=id)

    async def send_event(self, payload: object, *, exchange: str, routing_key: str) -> None:
        """Send a message to an exchange of your own, in the commit of this attempt's success.

        Raises:
            PayloadError: the payload can't become JSON.
        """
        self._send_event(payload, exchange, routing_key)


@dataclass(frozen=True, slots=True)
class SyncContext(BaseContext):
    """The attempt that a plain function runs in; its methods block where `Context`'s are awaited."""

    def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the attempt is, 0 to 1, as often as you like: it is written once a second."""
        self._report(fraction, note)

    def checkpoint(self, state: object) -> None:
        """Save `state` as `Context.checkpoint` does; returns after its commit, raises the same."""
        self.hands.save_from_thread(write_payload(state).decode())

    def send(
        self,
        task: AnyHandler | str,
        payload: object = None,
        *,
        queue: str | None = None,
        delay: timedelta | float = 0,
        id: str | None = None,  # noqa: A002 - the word of the message contract
    ) -> str:
        """Send a task as `Context.send` does; its id."""
        return self._send(task, payload, queue=queue, delay=delay, task_id=id)

    def send_event(self, payload: object, *, exchange: str, routing_key: str) -> None:
        """Send a message to an exchange of your own as `Context.send_event` does."""
        self._send_event(payload, exchange, routing_key)


current_task: ContextVar[BaseContext | None] = ContextVar("current_task", default=None)
"""The attempt that the running code belongs to, so that a handler's own `logging` carries its fields."""


def task_fields() -> Mapping[str, object]:
    """Return what a line of the running code carries; nothing outside an attempt."""
    context = current_task.get()
    return context.log_fields() if context is not None else {}


class _TaskLogger(logging.LoggerAdapter[logging.Logger]):
    """Keeps the `extra` of a call; before Python 3.13 the adapter's own replaces it."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401 - logging's own signature
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

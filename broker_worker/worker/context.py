"""What a handler sees of its task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from broker_worker.message import Message
from broker_worker.payload import Injected


@dataclass(frozen=True, slots=True)
class Context(Injected):
    """The attempt that a handler runs in. Its values are facts: nothing here does anything but log."""

    message: Message
    attempt: int  # 1 is the first
    max_attempts: int
    may_be_repeat: bool  # part of this work may have been done before: a later attempt, or a takeover
    deadline: datetime  # UTC; the attempt is ended then

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


current_task: ContextVar[Context | None] = ContextVar("current_task", default=None)
"""The attempt that the running code belongs to, so that a handler's own `logging` carries its fields."""


class _TaskLogger(logging.LoggerAdapter[logging.Logger]):
    """Keeps the `extra` of a call; before Python 3.13 the adapter's own replaces it."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401 - logging's own signature
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

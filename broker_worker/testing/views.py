"""What a test sees of a task and of what has left the worker."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from broker_worker.dead_letter import DeadLetter
from broker_worker.events import AttemptFinished, AttemptStarted, Event
from broker_worker.message import TaskId
from broker_worker.outcome import Dead, Failure, Outcome, Postponed, Reason
from broker_worker.outgoing import Outgoing
from broker_worker.task import TaskState
from broker_worker.testing.keeping import HarnessDatabase

Moments = Sequence[tuple[datetime, Event]]


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One run of the handler."""

    number: int  # 1 is the first
    started_at: datetime
    finished_at: datetime | None = None
    outcome: Outcome | None = None  # None while it runs

    @property
    def retry_in(self) -> timedelta | None:
        """The wait until the next attempt, where this one failed and another follows."""
        return self.outcome.delay if isinstance(self.outcome, Postponed) else None

    @property
    def failure(self) -> Failure | None:
        """The error that it ended with."""
        return self.outcome.failure if isinstance(self.outcome, Postponed | Dead) else None


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as it stands when the test looks."""

    id: str
    name: str
    queue: str
    state: TaskState
    attempt: int
    max_attempts: int
    reason: Reason | None
    result: Any  # parsed from JSON; None as well where there is none
    failure: Failure | None = field(repr=False)  # of the last attempt; none after a success
    progress: float | None  # as last reported
    progress_note: str | None
    checkpoint: Any
    started_at: datetime | None  # of the last attempt
    finished_at: datetime | None  # of the task
    attempts: tuple[AttemptView, ...] = field(repr=False)

    @property
    def retries(self) -> list[timedelta]:
        """The waits between its attempts, in their order."""
        return [each.retry_in for each in self.attempts if each.retry_in is not None]

    @property
    def error(self) -> BaseException | None:
        """What the handler raised, itself, where it ran in this process."""
        return self.failure.error if self.failure else None

    @property
    def error_type(self) -> str | None:
        return self.failure.error_type if self.failure else None

    @property
    def error_message(self) -> str | None:
        return self.failure.message if self.failure else None

    @property
    def traceback(self) -> str | None:
        """Where the handler failed, as people see it later."""
        return self.failure.traceback if self.failure else None


@dataclass(frozen=True, slots=True)
class LetterView:
    """An open dead letter; `task_id` and `name` are missing where the message had none that can be read."""

    task_id: str | None
    name: str | None
    queue: str
    reason: Reason
    failure: Failure = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def payload(self) -> Any:  # noqa: ANN401 - whatever JSON holds
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def error_type(self) -> str:
        return self.failure.error_type

    @property
    def error_message(self) -> str:
        return self.failure.message


@dataclass(frozen=True, slots=True)
class SentView:
    """A reply (`exchange` is empty, `routing_key` the queue), or an event that a handler sent."""

    exchange: str
    routing_key: str
    correlation_id: str | None
    headers: dict[str, object]
    payload: Any


def view_task(id_: TaskId, database: HarnessDatabase, moments: Moments) -> TaskView:
    """Look at a task."""
    row = database.tasks[id_]
    return TaskView(
        id=id_.id,
        name=id_.name,
        queue=id_.queue,
        state=row.task.state,
        attempt=row.task.attempt,
        max_attempts=row.task.max_attempts,
        reason=row.task.reason,
        result=None if row.result is None else json.loads(row.result),
        failure=database.failures.get(id_),
        progress=row.progress,
        progress_note=row.progress_note,
        checkpoint=None if row.checkpoint is None else json.loads(row.checkpoint),
        started_at=row.started_at,
        finished_at=database.finished_at.get(id_),
        attempts=tuple(_attempts(id_, moments)),
    )


def view_letter(letter: DeadLetter) -> LetterView:
    """Look at a dead letter."""
    return LetterView(
        letter.message_id, letter.name, letter.queue, letter.reason, letter.failure, letter.body
    )


def view_sent(outgoing: Outgoing) -> SentView:
    """Look at a message that has left."""
    properties = outgoing.properties
    return SentView(
        outgoing.exchange or "",
        outgoing.routing_key,
        properties.correlation_id,
        dict(properties.headers),
        json.loads(outgoing.body),
    )


def _attempts(id_: TaskId, moments: Moments) -> Iterable[AttemptView]:
    started: AttemptView | None = None
    for moment, event in moments:
        match event:
            case AttemptStarted(task=task, attempt=number) if task == id_:
                started = AttemptView(number, moment)
            case AttemptFinished(task=task, outcome=outcome) if task == id_ and started is not None:
                yield AttemptView(started.number, started.started_at, moment, outcome)
                started = None
            case _:
                pass
    if started is not None:
        yield started

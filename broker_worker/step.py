"""What one step of a task writes, all of it in one commit.

A decision about a delivery, an outcome of a run, a rescue, a cancel and a
replay all become a `Step` here, without I/O; a store applies it to the row
that it holds locked. What the step owes the world is part of it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from broker_worker.dead_letter import DeadLetter, letter_of_task
from broker_worker.message import Message
from broker_worker.outcome import Cancelled, Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.sending import SentTask
from broker_worker.task import (
    MAX_INTERRUPTIONS,
    Arrival,
    CancelledBefore,
    Claimed,
    Conflicting,
    Decision,
    Expired,
    GivenBody,
    PutOff,
    Reemitted,
    Refused,
    Task,
    TaskState,
    crash_failure,
)
from broker_worker.values import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one attempt of a task: the row as it was committed, and its message."""

    row: Task
    message: Message
    may_be_repeat: bool = False
    saved: str | None = None  # the last checkpoint, JSON
    time_left: timedelta | None = None  # until the task's deadline, by the database's clock, at the claim

    @property
    def key(self) -> int:
        return self.row.key

    @property
    def epoch(self) -> int:
        return self.row.epoch

    @property
    def attempt(self) -> int:
        return self.row.attempt


@dataclass(frozen=True, slots=True)
class Met:
    """The decision about a delivery, committed; with the claim where it leads to a run."""

    decision: Decision
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One row of `attempts`: a run that did not succeed, under the worker that ran it."""

    attempt: int
    epoch: int
    worker: UUID | None
    outcome: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """The task's message, owed to its queue after `delay`."""

    delay: timedelta = timedelta(0)
    is_exact: bool = False  # not a moment before


@dataclass(frozen=True, slots=True)
class Step:
    """From `before` (nothing: a new row) to `after`, with everything else of that commit.

    The body is stored when `after` has one and `before` has not, and dropped the other
    way round. `message` is there where a body, a copy or a letter needs it and the
    database does not have it yet.
    """

    before: Task | None
    after: Task
    failure: Failure | None = None
    due_in: timedelta | None = None
    message: Message | None = None
    record: AttemptRecord | None = None
    copy: Copy | None = None
    letter: DeadLetter | None = None


def new_row(arrival: Arrival) -> Task:
    """The row of a task that has none yet, before its first step."""
    message = arrival.message
    return Task(
        key=0,
        id=message.task,
        state=TaskState.QUEUED,
        attempt=0,
        max_attempts=arrival.max_attempts,
        epoch=0,
        worker=None,
        digest=arrival.digest,
        not_after=message.not_after,
        reply_to=message.reply_to if arrival.keeps_reply else None,
        correlation_id=message.correlation_id,
    )


def step_of_decision(decision: Decision, row: Task | None, arrival: Arrival, *, worker: UUID) -> Step | None:
    """What a decision about a delivery writes; nothing where it only settles the delivery."""
    base = row if row is not None else new_row(arrival)
    message = arrival.message
    match decision:
        case Claimed(attempt=attempt, epoch=epoch, after_crash=after_crash, deadline_at=deadline_at):
            after = replace(
                base,
                state=TaskState.RUNNING,
                attempt=attempt,
                epoch=epoch,
                worker=worker,
                max_attempts=arrival.max_attempts,
                refused_at=None,
                deadline_at=deadline_at,
                reason=Reason.CRASHED if after_crash else base.reason,
            )
            return Step(row, after, record=_crash_record(row) if after_crash else None)
        case Refused(reason=reason, failure=failure):
            return _refused(base, reason, failure, message=message, is_new=row is None)
        case PutOff(delay=delay, refusal=refusal, refused_at=refused_at, is_exact=is_exact):
            after = replace(
                _waiting(base, epoch=base.epoch + 1),
                refused_at=refused_at,
                reason=refusal.reason if refusal and not base.is_crasher else base.reason,
            )
            copy = Copy(delay, is_exact=is_exact)
            failure_kept = refusal.failure if refusal else None
            return Step(row, after, failure_kept, due_in=delay, message=message, copy=copy)
        case Reemitted():
            after = replace(_waiting(base, epoch=base.epoch + 1), poisonings=base.poisonings + 1)
            return Step(row, after, due_in=timedelta(0), message=message, copy=Copy())
        case Expired():
            return Step(row, _ended(base, TaskState.EXPIRED))
        case CancelledBefore():
            record = _crash_record(row) if row is not None and row.state is TaskState.RUNNING else None
            return Step(row, _ended(base, TaskState.CANCELLED), record=record)
        case GivenBody():
            return Step(row, replace(base, has_body=True), message=message)
        case _:
            return None


def conflict_letter(decision: Decision, row: Task | None, arrival: Arrival) -> DeadLetter | None:
    """The dead letter of a message whose identity another message has."""
    if not isinstance(decision, Conflicting) or row is None:
        return None
    return letter_of_conflict(arrival.message)


def letter_of_conflict(message: Message) -> DeadLetter:
    """The dead letter of `message`, whose identity another one has."""
    failure = Failure(
        "Conflict", "another message with this id is known, with a different body or media type"
    )
    return letter_of_task(message, reason=Reason.CONFLICT, failure=failure, attempt=0, epoch=0, task_key=None)


def step_of_sending(sent: SentTask, *, max_attempts: int) -> Step:
    """A task that a handler sent, and that has no row yet: its row is there before its copy is.

    It waits like one that was put off; the epoch makes a publisher's message of the same
    identity a duplicate. `max_attempts` stands until the first claim, which knows the handler.
    """
    row = new_row(Arrival(sent.message, sent.message.digest(), max_attempts))
    after = _waiting(row, epoch=row.epoch + 1)
    return Step(None, after, due_in=sent.delay, message=sent.message, copy=Copy(sent.delay))


def step_of_outcome(claim: Claim, outcome: Outcome, row: Task) -> Step:
    """What the end of a run writes. `row` is the row as it is now, locked, the claim still valid."""
    match outcome:
        case Succeeded():
            return Step(row, _ended(row, TaskState.SUCCEEDED))
        case Cancelled():
            return _cancelled(claim, row, None)
        case Postponed(failure=failure) | Dead(failure=failure) if row.is_cancel_requested:
            return _cancelled(claim, row, failure)  # an operator wanted the end: no dead letter
        case Postponed(delay=delay, failure=failure):
            waiting = _waiting(row, epoch=row.epoch, state=TaskState.RETRYING)
            after = replace(waiting, reason=outcome.kept_reason)
            return Step(
                row,
                after,
                failure,
                due_in=delay,
                message=claim.message,
                record=_record(row, outcome.recorded_as, failure),
                copy=Copy(delay),
            )
        case Dead(reason=reason, failure=failure):
            return _dead(
                row, reason, failure, message=claim.message, record=_record(row, str(reason), failure)
            )
        case Released():
            return _released(row, claim.message)


def step_of_rescue(row: Task, message: Message) -> Step:
    """A running task with its body in the database, whose worker is dead."""
    record = _crash_record(row)
    if row.is_cancel_requested:
        return Step(row, _ended(row, TaskState.CANCELLED), record=record)
    if row.attempt >= row.max_attempts:
        return _dead(row, Reason.CRASHED, crash_failure(), message=message, record=record)
    after = replace(
        _waiting(row, epoch=row.epoch + 1, state=TaskState.RETRYING),
        reason=Reason.CRASHED,
    )
    return Step(row, after, crash_failure(), due_in=timedelta(0), message=message, record=record, copy=Copy())


def step_of_forgotten(row: Task, message: Message) -> Step:
    """A task running under our own id that our memory does not know, with its body in the database."""
    return _released(row, message)


def step_of_overdue(row: Task, message: Message) -> Step:
    """A waiting task whose copy did not come: send another, which makes the old one stale."""
    after = replace(row, epoch=row.epoch + 1, reemissions=row.reemissions + 1)
    return Step(row, after, due_in=timedelta(0), message=message, copy=Copy())


def step_of_loss(row: Task) -> Step:
    """A task of a dead worker that neither the database nor, for hours, the broker had a message of."""
    if row.is_cancel_requested:
        return Step(row, _ended(row, TaskState.CANCELLED), record=_crash_record(row))
    failure = Failure("Lost", "its worker died and its message never came back")
    letter = DeadLetter(
        id=letter_of_task(_bodiless(row), reason=Reason.LOST, failure=failure, attempt=0, epoch=row.epoch).id,
        queue=row.id.queue,
        name=row.id.name,
        message_id=row.id.id,
        reason=Reason.LOST,
        failure=failure,
        body=b"",
        record={},
        attempt=row.attempt,
        epoch=row.epoch,
        task_key=row.key,
    )
    after = replace(_ended(row, TaskState.DEAD), reason=Reason.LOST)
    return Step(row, after, failure, record=_crash_record(row), letter=letter)


def step_of_cancel(row: Task) -> Step:
    """An operator's cancel: at once where it waits, asked for where it runs."""
    if row.state is TaskState.RUNNING:
        return Step(row, replace(row, is_cancel_requested=True))
    return Step(row, _ended(row, TaskState.CANCELLED))


def step_of_replay(row: Task, message: Message) -> Step:
    """A dead task begins again, from its dead letter, at once, whatever its publisher's times were."""
    message = replace(message, not_after=None, deliver_at=None)
    after = replace(
        _waiting(row, epoch=row.epoch + 1, state=TaskState.QUEUED),
        attempt=0,
        interruptions=0,
        poisonings=0,
        reemissions=0,
        refused_at=None,
        reason=None,
        is_cancel_requested=False,
        not_after=None,
        deadline_at=None,
    )
    return Step(row, after, due_in=timedelta(0), message=message, copy=Copy())


def _released(row: Task, message: Message) -> Step:
    """Our own reasons are not charged, but not for ever either."""
    if row.is_cancel_requested:
        return Step(row, _ended(row, TaskState.CANCELLED), record=_record(row, "cancelled", None))
    interruptions = row.interruptions + 1
    record = _record(row, "released", None)
    if interruptions >= MAX_INTERRUPTIONS:
        failure = Failure("Interrupted", f"stopped {interruptions} times by the worker's own end")
        return _dead(row, Reason.INTERRUPTED, failure, message=message, record=record)
    after = replace(
        _waiting(row, epoch=row.epoch),
        attempt=max(row.attempt - 1, 0),
        interruptions=interruptions,
    )
    return Step(row, after, due_in=timedelta(0), message=message, record=record, copy=Copy())


def _waiting(row: Task, *, epoch: int, state: TaskState | None = None) -> Task:
    if state is None:
        state = TaskState.RETRYING if row.state is TaskState.RETRYING else TaskState.QUEUED
    return replace(row, state=state, epoch=epoch, has_body=True)


def _ended(row: Task, state: TaskState) -> Task:
    return replace(row, state=state, has_body=False, reason=None, refused_at=None)


def _refused(base: Task, reason: Reason, failure: Failure, *, message: Message, is_new: bool) -> Step:
    record = _crash_record(base) if base.state is TaskState.RUNNING else None
    step = _dead(base, reason, failure, message=message, record=record)
    return replace(step, before=None) if is_new else step


def _dead(
    row: Task, reason: Reason, failure: Failure, *, message: Message, record: AttemptRecord | None
) -> Step:
    letter = letter_of_task(
        message,
        reason=reason,
        failure=failure,
        attempt=row.attempt,
        epoch=row.epoch,
        task_key=row.key,
    )
    after = replace(_ended(row, TaskState.DEAD), reason=reason)
    return Step(row, after, failure, message=message, record=record, letter=letter)


def _cancelled(claim: Claim, row: Task, failure: Failure | None) -> Step:
    record = _record(row, "cancelled", failure)
    return Step(row, _ended(row, TaskState.CANCELLED), failure, message=claim.message, record=record)


def _record(row: Task, outcome: str, failure: Failure | None) -> AttemptRecord:
    return AttemptRecord(row.attempt, row.epoch, row.worker, outcome, failure)


def _crash_record(row: Task | None) -> AttemptRecord | None:
    if row is None:
        return None
    return _record(row, str(Reason.CRASHED), crash_failure())


def _bodiless(row: Task) -> Message:
    return Message(task=row.id, body=b"")

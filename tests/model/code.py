"""The daemon's own decisions and steps, asked in the model's words.

Nothing is restated here: `task.meet` decides what a delivery means and `step.step_of_*` what is
written, for a row made up to look like the model's. So the model explores the code's rules, and
whatever it finds in them is found in the code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from functools import cache
from uuid import UUID

from broker_worker.failure import Refusal
from broker_worker.message import Message, TaskId
from broker_worker.outcome import Failure, GiveUp, Outcome, Reason, Released, Succeeded
from broker_worker.retry import RetryPolicy, follow_up
from broker_worker.sending import SentTask
from broker_worker.step import (
    Claim,
    Step,
    step_of_cancel,
    step_of_decision,
    step_of_forgotten,
    step_of_loss,
    step_of_outcome,
    step_of_overdue,
    step_of_replay,
    step_of_rescue,
    step_of_sending,
)
from broker_worker.task import (
    MAX_INTERRUPTIONS,
    TRANSITIONS,
    Arrival,
    Decision,
    Holder,
    Lane,
    Poisoning,
    Task,
    TaskState,
    meet,
)
from tests.model.state import Mark, Phase, Row

MAX_ATTEMPTS = 2
INTERRUPTIONS_LEFT = 2  # a model's row begins with all but so many of them behind it
GRACE = timedelta(minutes=5)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = TaskId("email", "email.send", "m-1")
EPOCH = 10  # of a row that is there; a stale copy has an older one
ME, ANOTHER = UUID(int=1), UUID(int=2)
POLICY = RetryPolicy(MAX_ATTEMPTS, delay=timedelta(seconds=1), max_delay=timedelta(seconds=1))
_FAILURE = Failure("ValueError", "no")
_REASON_BY_MARK = {Mark.NONE: None, Mark.CRASHED: Reason.CRASHED, Mark.LOST: Reason.LOST}
_MARK_BY_REASON = {Reason.CRASHED: Mark.CRASHED, Reason.LOST: Mark.LOST}


class Manner(IntEnum):
    """In what circumstances a delivery is decided."""

    AS_USUAL = 0
    LANE_BUSY = 1
    UNKNOWN_TASK = 2  # in the grace of a rolling deploy
    REFUSED = 3
    NOT_YET = 4  # deliver-at
    TOO_LATE = 5  # not-after
    OUT_OF_TIME = 6  # its deadline for all attempts
    GIVEN_UP = 7  # by the broker: at its delivery limit
    EXPIRED = 8  # by the broker: too old


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit makes of the row."""

    row: Row
    ages: bool = False  # the epoch grew: older copies and runs are stale now
    sends_copy: bool = False
    breaks: tuple[str, ...] = ()  # properties that the step itself breaks


@dataclass(frozen=True, slots=True)
class Answer:
    """What a delivery means, and the change that comes with it."""

    decision: Decision
    change: Change | None


# --- made up for the code ----------------------------------------------------------


def task_of(row: Row, *, worker: UUID | None) -> Task:
    """Make a row for the code; `worker` is whom it names."""
    return Task(
        key=1,
        id=ID,
        state=row.state,
        attempt=row.attempt,
        max_attempts=MAX_ATTEMPTS,
        epoch=EPOCH,
        worker=worker,
        digest=message(EPOCH).digest(),
        reason=_REASON_BY_MARK[row.mark],
        interruptions=MAX_INTERRUPTIONS - INTERRUPTIONS_LEFT + row.interruptions,
        poisonings=row.poisonings,
        is_cancel_requested=row.is_cancel_requested,
        has_body=row.has_body,
    )


def message(epoch: int) -> Message:
    return Message(ID, b"{}", epoch=epoch)


def arrival_of(row: Row | None, *, is_current: bool, has_slot: bool, manner: Manner) -> Arrival:
    """Make a delivery for the code."""
    copy = message(0 if row is None else EPOCH if is_current else EPOCH - 1)
    if manner is Manner.NOT_YET:
        copy = replace(copy, deliver_at=NOW + timedelta(hours=1))
    if manner is Manner.TOO_LATE:
        copy = replace(copy, not_after=NOW - timedelta(hours=1))
    reason = {Manner.UNKNOWN_TASK: Reason.UNKNOWN_TASK, Manner.REFUSED: Reason.OVERSIZE}.get(manner)
    return Arrival(
        copy,
        copy.digest(),
        MAX_ATTEMPTS,
        refusal=Refusal(reason, _FAILURE) if reason else None,
        poisoning={
            Manner.GIVEN_UP: Poisoning.DELIVERY_LIMIT,
            Manner.EXPIRED: Poisoning.EXPIRED,
        }.get(manner),
        has_slot=has_slot,
        lane=Lane.BUSY if manner is Manner.LANE_BUSY else Lane.HELD,
    )


# --- asked of the code ---------------------------------------------------------------


@cache
def met(row: Row | None, *, is_current: bool, holder: Holder, has_slot: bool, manner: Manner) -> Answer:
    """Let a delivery meet its row at the worker `ME`."""
    here = {Holder.HERE, Holder.HERE_ADRIFT, Holder.HERE_FORGOTTEN}
    task = task_of(row, worker=ME if holder in here else ANOTHER) if row is not None else None
    if task is not None and manner is Manner.OUT_OF_TIME:
        task = replace(task, deadline_at=NOW - timedelta(hours=1))
    arrival = arrival_of(row, is_current=is_current, has_slot=has_slot, manner=manner)
    decision = meet(task, arrival, holder=holder, now=NOW, grace=GRACE)
    step = step_of_decision(decision, task, arrival, worker=ME)
    return Answer(decision, change_of(row, step) if step is not None else None)


def outcome_of(phase: Phase, attempt: int) -> Outcome:
    """What a run has led to."""
    match phase:
        case Phase.RETURNED:
            return Succeeded()
        case Phase.FAILED:
            return follow_up(ValueError("no"), attempt=attempt, policy=POLICY, jitter=0)
        case Phase.GAVE_UP:
            return follow_up(GiveUp("no"), attempt=attempt, policy=POLICY, jitter=0)
        case _:
            return Released()


@cache
def recorded(row: Row, phase: Phase) -> Change:
    """Record the outcome of a run whose claim holds."""
    task = task_of(row, worker=ME)
    change = change_of(
        row, step_of_outcome(Claim(task, message(EPOCH - 1)), outcome_of(phase, row.attempt), task)
    )
    after = change.row
    if phase is Phase.RETURNED:
        after = after._replace(effects=after.effects + 1)
    if phase is Phase.INTERRUPTED:
        after = after._replace(starts=after.starts - 1)
    return replace(change, row=after)


@cache
def rescued(row: Row) -> Change:
    return change_of(row, step_of_rescue(task_of(row, worker=ANOTHER), message(EPOCH)))


@cache
def released(row: Row) -> Change:
    return change_of(row, step_of_forgotten(task_of(row, worker=ME), message(EPOCH)))


@cache
def reemitted(row: Row) -> Change:
    return change_of(row, step_of_overdue(task_of(row, worker=None), message(EPOCH)))


@cache
def given_up_for_lost(row: Row) -> Change:
    return change_of(row, step_of_loss(task_of(row, worker=ANOTHER)))


@cache
def cancelled(row: Row) -> Change:
    return change_of(row, step_of_cancel(task_of(row, worker=ANOTHER)))


@cache
def replayed(row: Row) -> Change:
    change = change_of(row, step_of_replay(task_of(row, worker=ANOTHER), message(EPOCH)), is_replay=True)
    return replace(change, row=change.row._replace(starts=0))


@cache
def sent() -> Change:
    return change_of(None, step_of_sending(SentTask(message(0)), max_attempts=MAX_ATTEMPTS))


# --- read from the code's answers -----------------------------------------------------


def change_of(row: Row | None, step: Step, *, is_replay: bool = False) -> Change:
    """Read a step, and judge it as far as it can be judged alone."""
    before = step.before.epoch if step.before is not None else 0
    after = row_of(row, step.after)
    return Change(
        after,
        ages=step.after.epoch > before,
        sends_copy=step.copy is not None,
        breaks=tuple(_broken_by(step, is_replay=is_replay)),
    )


def row_of(before: Row | None, task: Task) -> Row:
    """Read a task of the code's; what no database has is taken over from `before`."""
    interruptions = task.interruptions - MAX_INTERRUPTIONS + INTERRUPTIONS_LEFT
    return Row(
        task.state,
        task.attempt,
        has_body=task.has_body,
        is_cancel_requested=task.is_cancel_requested,
        mark=_MARK_BY_REASON.get(task.reason, Mark.NONE) if task.reason else Mark.NONE,
        interruptions=max(interruptions, 0),
        poisonings=task.poisonings,
        starts=before.starts if before else 0,
        effects=before.effects if before else 0,
    )


def _broken_by(step: Step, *, is_replay: bool) -> list[str]:
    before, after = step.before, step.after
    state = before.state if before else None
    broken = []
    if before and before != after and not _is_legal(before, after, is_replay=is_replay):
        broken.append("legal")
    if after.state is TaskState.DEAD and step.letter is None:
        broken.append("letter")
    is_over = after.state is not TaskState.RUNNING or (before is not None and after.epoch > before.epoch)
    is_told = step.record is not None or after.state is TaskState.SUCCEEDED
    if state is TaskState.RUNNING and is_over and not is_told:
        broken.append("record")
    return broken


def _is_legal(before: Task, after: Task, *, is_replay: bool) -> bool:
    """Whether a step is in the table, and its epoch is never set back."""
    if before.state is TaskState.DEAD and not is_replay:
        return False
    return after.state in TRANSITIONS[before.state] and after.epoch >= before.epoch

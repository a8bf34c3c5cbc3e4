"""The durable side of a message: its row, the states of that row, and what a delivery finds there.

`meet` is the arrival table of docs/internals.md as one pure function. Whoever
stores tasks calls it with the row locked and then writes what it decided.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto
from uuid import UUID

from broker_worker.failure import Refusal
from broker_worker.message import Message, TaskId, UntakenBody
from broker_worker.outcome import Failure, Reason
from broker_worker.values import dataclass

MAX_INTERRUPTIONS = 50  # releases that are not charged; more would hide a task that never gets through
MAX_POISONINGS = 3  # times that the broker may give a message up before we do
LANE_WAIT = timedelta(seconds=5)  # until a crasher tries again to run alone
UNROUTABLE_WAIT = timedelta(seconds=5)  # until a queue that is missing should have been declared again
FIRST_GRACE_WAIT = timedelta(seconds=5)
LONGEST_GRACE_WAIT = timedelta(minutes=1)
GRACE_REASONS = frozenset({Reason.UNKNOWN_TASK, Reason.INVALID_PAYLOAD})


class TaskState(StrEnum):
    """Where a task stands. Every word of it is a word of the documentation."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


WAITING = frozenset({TaskState.QUEUED, TaskState.RETRYING})
TERMINAL = frozenset({TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED, TaskState.EXPIRED})
_ENDS_WAITING = frozenset({TaskState.RUNNING, TaskState.DEAD, TaskState.CANCELLED, TaskState.EXPIRED})

# The only legal steps; a trigger in the database asserts the same table. Only replay leaves a terminal state.
TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.QUEUED: _ENDS_WAITING | {TaskState.QUEUED, TaskState.RETRYING},
    TaskState.RETRYING: _ENDS_WAITING | {TaskState.QUEUED, TaskState.RETRYING},
    TaskState.RUNNING: frozenset(
        {
            TaskState.RUNNING,
            TaskState.QUEUED,
            TaskState.RETRYING,
            TaskState.SUCCEEDED,
            TaskState.DEAD,
            TaskState.CANCELLED,
        }
    ),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.DEAD: frozenset({TaskState.QUEUED}),
    TaskState.CANCELLED: frozenset(),
    TaskState.EXPIRED: frozenset(),
}


class Poisoning(StrEnum):
    """Why the broker itself gave a message of a work queue up."""

    DELIVERY_LIMIT = "delivery_limit"
    EXPIRED = "expired"
    UNROUTABLE = "unroutable"  # not given up, but led to no queue


@dataclass(frozen=True, slots=True)
class Task:
    """One row of `tasks`, as far as decisions need it."""

    key: int
    id: TaskId
    state: TaskState
    attempt: int
    max_attempts: int
    epoch: int
    worker: UUID | None
    digest: bytes
    reason: Reason | None = None
    interruptions: int = 0
    poisonings: int = 0
    reemissions: int = 0
    is_cancel_requested: bool = False
    has_body: bool = False
    refused_at: datetime | None = None
    not_after: datetime | None = None
    deadline_at: datetime | None = None  # of all attempts; set by the first
    reply_to: str | None = None
    correlation_id: str | None = None

    @property
    def is_crasher(self) -> bool:
        """Whether its last attempt took a worker down, or might have."""
        return self.reason is Reason.CRASHED


class Holder(Enum):
    """Who runs a task, seen from the worker that a delivery of it reached."""

    NOBODY = auto()  # the row is not running
    HERE = auto()  # this process runs it and holds its delivery
    HERE_ADRIFT = auto()  # this process runs it; the channel of its delivery is gone
    HERE_FORGOTTEN = auto()  # the row says this process, whose memory knows of no run
    ELSEWHERE = auto()  # a worker that is not dead
    DEAD = auto()


class Lane(Enum):
    """Crashers run alone: one at a time in a process."""

    HELD = auto()  # by this delivery
    FREE = auto()
    BUSY = auto()


@dataclass(frozen=True, slots=True)
class Arrival:
    """One delivery before its row: the message, and what this process could do with it now."""

    message: Message
    digest: bytes
    max_attempts: int
    deadline: timedelta | None = None  # for all attempts, from the first start on
    refusal: Refusal | None = None
    poisoning: Poisoning | None = None
    has_slot: bool = True
    lane: Lane = Lane.FREE
    keeps_reply: bool = False  # the publisher named a reply queue that is allowed
    most_attempts: int = 0  # that any of the handler's policies by error allows, where that is more


# --- decisions -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed:
    """The next attempt is ours; `after_crash` where it takes the task from a dead worker."""

    attempt: int
    epoch: int
    after_crash: bool = False
    deadline_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """The claim was made by us before and its commit's reply lost: run under it."""

    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Adopted:
    """A run of ours lost its channel: this delivery takes the place of the lost one."""

    epoch: int


class Duplicate:
    """Nothing to do: ack and count."""


class Conflicting:
    """The identity is taken by another message: a dead letter, the row untouched."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It ends here as `dead`."""

    reason: Reason
    failure: Failure


@dataclass(frozen=True, slots=True)
class PutOff:
    """It has to wait `delay`, without a run and without a charge."""

    delay: timedelta
    refusal: Refusal | None = None
    refused_at: datetime | None = None
    is_exact: bool = False  # not a moment before: waits in Postgres and not in a rung


class Reemitted:
    """The broker gave the copy up: send it again."""


class Expired:
    """Past its not-after."""


class CancelledBefore:
    """An operator cancelled it and no attempt runs."""


class GivenBody:
    """It runs elsewhere: leave the row its body, so that the rescuer can send it again."""


class NeedsSlot:
    """Nothing was written. Come again with a free slot."""


class NeedsLane:
    """Nothing was written. Come again holding the crashers' lane."""


Decision = (
    Claimed
    | Resumed
    | Adopted
    | Duplicate
    | Conflicting
    | Refused
    | PutOff
    | Reemitted
    | Expired
    | CancelledBefore
    | GivenBody
    | NeedsSlot
    | NeedsLane
)


def meet(row: Task | None, arrival: Arrival, *, holder: Holder, now: datetime, grace: timedelta) -> Decision:
    """Decide what a delivery means, with its row locked.

    `grace` is how long an unknown task or an invalid payload may wait for a newer release.
    """
    if row is None:
        return _begin(None, arrival, now=now, grace=grace)
    if row.digest != arrival.digest:
        return Conflicting()
    if row.state in TERMINAL:
        return Duplicate()
    if row.state in WAITING:
        if arrival.message.epoch < row.epoch:
            return Duplicate()
        return _begin(row, arrival, now=now, grace=grace)
    if holder is Holder.DEAD:
        return _take_over(row, arrival, now)
    return _join(row, arrival, holder)


def _begin(row: Task | None, arrival: Arrival, *, now: datetime, grace: timedelta) -> Decision:
    """A task that nobody runs, and this is its current message."""
    if row is not None and row.is_cancel_requested:
        return CancelledBefore()
    if is_past(arrival.message.not_after, now) or arrival.poisoning is Poisoning.EXPIRED:
        return Expired()
    refusal, deliver_at = arrival.refusal, arrival.message.deliver_at
    is_final = refusal is not None and refusal.reason not in GRACE_REASONS
    if deliver_at is not None and deliver_at > now and not is_final:
        return PutOff(delay=deliver_at - now, is_exact=True)  # who knows what is deployed by then
    if refusal is not None:
        return _refuse(row, refusal, now=now, grace=grace)
    if arrival.poisoning is Poisoning.UNROUTABLE:
        return PutOff(delay=UNROUTABLE_WAIT)  # at once it would come back as fast as the broker can
    if arrival.poisoning is not None:
        return _revive(row)
    return _claim(row, arrival, now)


def _claim(row: Task | None, arrival: Arrival, now: datetime) -> Decision:
    if row is None:
        deadline_at = deadline_of(None, arrival, now)
        return Claimed(attempt=1, epoch=1, deadline_at=deadline_at) if arrival.has_slot else NeedsSlot()
    if is_past(row.deadline_at, now):
        return _too_late()
    if row.attempt >= max(arrival.max_attempts, arrival.most_attempts):  # the policy was tightened
        return Refused(Reason.ATTEMPTS_EXHAUSTED, Failure("AttemptsExhausted", "no attempts are left"))
    if row.is_crasher and arrival.lane is not Lane.HELD:
        return NeedsLane() if arrival.lane is Lane.FREE else PutOff(delay=LANE_WAIT)
    if not arrival.has_slot:
        return NeedsSlot()
    deadline_at = deadline_of(row, arrival, now)
    return Claimed(attempt=row.attempt + 1, epoch=row.epoch + 1, deadline_at=deadline_at)


def _take_over(row: Task, arrival: Arrival, now: datetime) -> Decision:
    """Its worker is dead, and the broker gave the message to us."""
    if row.is_cancel_requested:
        return CancelledBefore()
    if row.attempt >= row.max_attempts:
        return Refused(Reason.CRASHED, crash_failure())
    if is_past(row.deadline_at, now):
        return _too_late()
    if arrival.refusal is not None and isinstance(arrival.message.body, UntakenBody):
        return Refused(arrival.refusal.reason, arrival.refusal.failure)  # there is no body to leave it
    cannot_run_here = arrival.refusal is not None or arrival.poisoning is not None
    # a second start: what is past its not-after waits for the rescuer, and expires when it comes back
    if cannot_run_here or is_past(arrival.message.not_after, now) or arrival.lane is Lane.BUSY:
        return GivenBody()
    if arrival.lane is not Lane.HELD:
        return NeedsLane()
    if not arrival.has_slot:
        return NeedsSlot()
    return Claimed(row.attempt + 1, row.epoch + 1, after_crash=True, deadline_at=row.deadline_at)


def _join(row: Task, arrival: Arrival, holder: Holder) -> Decision:
    """A live worker runs it."""
    if isinstance(arrival.message.body, UntakenBody):
        return Duplicate()
    match holder:
        case Holder.HERE:
            return Duplicate()
        case Holder.HERE_ADRIFT if arrival.poisoning is None:
            return Adopted(epoch=row.epoch)
        case Holder.HERE_FORGOTTEN if arrival.poisoning is None and arrival.refusal is None:
            if not arrival.has_slot:
                return NeedsSlot()
            return Resumed(attempt=row.attempt, epoch=row.epoch)
        case _:
            return GivenBody()


def _refuse(row: Task | None, refusal: Refusal, *, now: datetime, grace: timedelta) -> Refused | PutOff:
    if refusal.reason not in GRACE_REASONS:
        return Refused(refusal.reason, refusal.failure)
    since = (row.refused_at if row is not None else None) or now
    waited = now - since
    if waited >= grace:
        return Refused(refusal.reason, refusal.failure)
    doubling = min(max(waited, FIRST_GRACE_WAIT), LONGEST_GRACE_WAIT)
    return PutOff(delay=min(doubling, grace - waited), refusal=refusal, refused_at=since)


def _revive(row: Task | None) -> Reemitted | Refused:
    poisonings = row.poisonings if row is not None else 0
    if poisonings + 1 < MAX_POISONINGS:
        return Reemitted()
    failure = Failure("DeliveryLimit", f"the broker gave the message up {MAX_POISONINGS} times")
    return Refused(Reason.DELIVERY_LIMIT, failure)


def _too_late() -> Refused:
    return Refused(Reason.TIMEOUT, Failure("DeadlineExceeded", "the time for all attempts is over"))


def deadline_of(row: Task | None, arrival: Arrival, now: datetime) -> datetime | None:
    """When all attempts have to be over: fixed by the first that starts."""
    if row is not None and row.deadline_at is not None:
        return row.deadline_at
    return now + arrival.deadline if arrival.deadline is not None else None


def is_past(moment: datetime | None, now: datetime) -> bool:
    """Whether `moment` is set and over."""
    return moment is not None and moment < now


def crash_failure() -> Failure:
    """What is known of an attempt whose worker died: that it died."""
    return Failure("WorkerDied", "the worker that ran it is dead")

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from broker_worker.failure import Refusal
from broker_worker.message import Message, Properties, TaskId, UntakenBody
from broker_worker.outcome import Failure, Reason
from broker_worker.step import conflict_letter, step_of_decision
from broker_worker.task import (
    GRACE_REASONS,
    LANE_WAIT,
    LONGEST_GRACE_WAIT,
    MAX_POISONINGS,
    TERMINAL,
    TRANSITIONS,
    UNROUTABLE_WAIT,
    WAITING,
    Adopted,
    Arrival,
    CancelledBefore,
    Claimed,
    Conflicting,
    Decision,
    Duplicate,
    Expired,
    GivenBody,
    Holder,
    Lane,
    NeedsLane,
    NeedsSlot,
    Poisoning,
    PutOff,
    Reemitted,
    Refused,
    Resumed,
    Task,
    TaskState,
    meet,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
GRACE = timedelta(minutes=5)
HERE = UUID(int=1)
THERE = UUID(int=2)
TASK = TaskId("email", "email.send", "m-1")
EPOCH = 5
MAX_ATTEMPTS = 3
UNKNOWN = Refusal(Reason.UNKNOWN_TASK, Failure("UnknownTask"))
MALFORMED = Refusal(Reason.MALFORMED, Failure("ContractError"))


def message(
    epoch: int = 0, *, deliver_at: datetime | None = None, not_after: datetime | None = None
) -> Message:
    return Message(TASK, b"{}", epoch=epoch, deliver_at=deliver_at, not_after=not_after)


def arrival(of: Message | None = None) -> Arrival:
    of = of or message()
    return Arrival(message=of, digest=of.digest(), max_attempts=MAX_ATTEMPTS)


def row(state: TaskState, *, worker: UUID | None = THERE, attempt: int = 1) -> Task:
    return Task(1, TASK, state, attempt, MAX_ATTEMPTS, EPOCH, worker, message().digest())


def decide(task: Task | None, of: Arrival, holder: Holder = Holder.NOBODY) -> Decision:
    return meet(task, of, holder=holder, now=NOW, grace=GRACE)


def decision_of(task: Task | None, of: Arrival, holder: Holder = Holder.NOBODY) -> type[Decision]:
    return type(decide(task, of, holder))


CURRENT = arrival(message(EPOCH))
STALE = arrival(message(EPOCH - 1))
QUEUED = row(TaskState.QUEUED)
RUNNING = row(TaskState.RUNNING)

# --- the table, a line each ----------------------------------------------------


@dataclass(frozen=True)
class Case:
    row: Task | None
    arrival: Arrival
    expected: Decision | type[Decision]
    holder: Holder = Holder.NOBODY


HOUR = timedelta(hours=1)
LATER = NOW + HOUR
PAST = NOW - timedelta(seconds=1)
OTHER = replace(CURRENT, digest=b"other")
CASES = {
    # identity differs
    "conflict with a waiting row": Case(QUEUED, OTHER, Conflicting),
    "conflict with a running row": Case(RUNNING, OTHER, Conflicting, Holder.ELSEWHERE),
    "conflict with a finished row": Case(row(TaskState.SUCCEEDED), OTHER, Conflicting),
    # no row
    "new": Case(None, arrival(), Claimed(1, 1)),
    "new, no slot": Case(None, replace(arrival(), has_slot=False), NeedsSlot),
    "new, of a pruned row's copy": Case(None, CURRENT, Claimed(1, 1)),
    "new, refused at once": Case(
        None, replace(arrival(), refusal=MALFORMED), Refused(Reason.MALFORMED, MALFORMED.failure)
    ),
    "new, unknown task waits": Case(
        None, replace(arrival(), refusal=UNKNOWN), PutOff(timedelta(seconds=5), UNKNOWN, NOW)
    ),
    "new, deliver-at": Case(
        None, arrival(message(deliver_at=LATER)), PutOff(timedelta(hours=1), is_exact=True)
    ),
    "new, deliver-at is over": Case(None, arrival(message(deliver_at=PAST)), Claimed(1, 1)),
    "new, expired": Case(None, arrival(message(not_after=PAST)), Expired),
    "new, in time": Case(None, arrival(message(not_after=LATER)), Claimed(1, 1)),
    "new, just in time": Case(None, arrival(message(not_after=NOW)), Claimed(1, 1)),
    "new, given up by the broker": Case(
        None, replace(arrival(), poisoning=Poisoning.DELIVERY_LIMIT), Reemitted
    ),
    # terminal
    "succeeded": Case(row(TaskState.SUCCEEDED), CURRENT, Duplicate),
    "dead": Case(row(TaskState.DEAD), CURRENT, Duplicate),
    "cancelled": Case(row(TaskState.CANCELLED), CURRENT, Duplicate),
    "expired": Case(row(TaskState.EXPIRED), CURRENT, Duplicate),
    # waiting, current
    "queued, current": Case(QUEUED, CURRENT, Claimed(2, EPOCH + 1)),
    "retrying, current": Case(row(TaskState.RETRYING), CURRENT, Claimed(2, EPOCH + 1)),
    "cancel asked": Case(replace(QUEUED, is_cancel_requested=True), CURRENT, CancelledBefore),
    "cancel comes before expiry": Case(
        replace(QUEUED, is_cancel_requested=True), arrival(message(EPOCH, not_after=PAST)), CancelledBefore
    ),
    "past not-after": Case(QUEUED, arrival(message(EPOCH, not_after=PAST)), Expired),
    "expired in the broker": Case(QUEUED, replace(CURRENT, poisoning=Poisoning.EXPIRED), Expired),
    "unknown since a minute": Case(
        replace(QUEUED, refused_at=NOW - timedelta(minutes=1)),
        replace(CURRENT, refusal=UNKNOWN),
        PutOff(LONGEST_GRACE_WAIT, UNKNOWN, NOW - timedelta(minutes=1)),
    ),
    "unknown for nearly the grace": Case(
        replace(QUEUED, refused_at=NOW - GRACE + timedelta(seconds=7)),
        replace(CURRENT, refusal=UNKNOWN),
        PutOff(timedelta(seconds=7), UNKNOWN, NOW - GRACE + timedelta(seconds=7)),
    ),
    "unknown for the grace": Case(
        replace(QUEUED, refused_at=NOW - GRACE),
        replace(CURRENT, refusal=UNKNOWN),
        Refused(Reason.UNKNOWN_TASK, UNKNOWN.failure),
    ),
    "a malformed copy": Case(
        QUEUED, replace(CURRENT, refusal=MALFORMED), Refused(Reason.MALFORMED, MALFORMED.failure)
    ),
    "the policy was tightened": Case(replace(QUEUED, attempt=MAX_ATTEMPTS), CURRENT, Refused),
    "the policy was loosened": Case(
        replace(QUEUED, attempt=MAX_ATTEMPTS),
        replace(CURRENT, max_attempts=9),
        Claimed(MAX_ATTEMPTS + 1, EPOCH + 1),
    ),
    "an error's own policy allows more": Case(
        replace(QUEUED, attempt=MAX_ATTEMPTS),
        replace(CURRENT, most_attempts=9),
        Claimed(MAX_ATTEMPTS + 1, EPOCH + 1),
    ),
    "new, with a deadline": Case(
        None, replace(arrival(), deadline=HOUR), Claimed(1, 1, deadline_at=NOW + HOUR)
    ),
    "the deadline stays that of the first start": Case(
        replace(QUEUED, deadline_at=LATER),
        replace(CURRENT, deadline=2 * HOUR),
        Claimed(2, EPOCH + 1, deadline_at=LATER),
    ),
    "past its deadline": Case(replace(QUEUED, deadline_at=PAST), CURRENT, Refused),
    "takeover past its deadline": Case(replace(RUNNING, deadline_at=PAST), arrival(), Refused, Holder.DEAD),
    "takeover keeps the deadline": Case(
        replace(RUNNING, deadline_at=LATER),
        replace(arrival(), lane=Lane.HELD, deadline=2 * HOUR),
        Claimed(2, EPOCH + 1, after_crash=True, deadline_at=LATER),
        Holder.DEAD,
    ),
    "a crasher asks for the lane": Case(replace(QUEUED, reason=Reason.CRASHED), CURRENT, NeedsLane),
    "a crasher, the lane busy": Case(
        replace(QUEUED, reason=Reason.CRASHED), replace(CURRENT, lane=Lane.BUSY), PutOff(LANE_WAIT)
    ),
    "a crasher in the lane": Case(
        replace(QUEUED, reason=Reason.CRASHED), replace(CURRENT, lane=Lane.HELD), Claimed(2, EPOCH + 1)
    ),
    "given up by the broker": Case(QUEUED, replace(CURRENT, poisoning=Poisoning.DELIVERY_LIMIT), Reemitted),
    "led to no queue": Case(
        QUEUED, replace(CURRENT, poisoning=Poisoning.UNROUTABLE), PutOff(UNROUTABLE_WAIT)
    ),
    "led to no queue for the third time": Case(
        replace(QUEUED, poisonings=MAX_POISONINGS - 1),
        replace(CURRENT, poisoning=Poisoning.UNROUTABLE),
        PutOff(UNROUTABLE_WAIT),
    ),
    "given up for the third time": Case(
        replace(QUEUED, poisonings=MAX_POISONINGS - 1),
        replace(CURRENT, poisoning=Poisoning.DELIVERY_LIMIT),
        Refused,
    ),
    # waiting, older
    "queued, older": Case(QUEUED, STALE, Duplicate),
    "queued, from the publisher again": Case(QUEUED, arrival(), Duplicate),
    "older and cancelled": Case(replace(QUEUED, is_cancel_requested=True), STALE, Duplicate),
    "older and expired": Case(QUEUED, arrival(message(EPOCH - 1, not_after=PAST)), Duplicate),
    # running in this process
    "running here": Case(RUNNING, CURRENT, Duplicate, Holder.HERE),
    "running here, channel gone": Case(RUNNING, CURRENT, Adopted(EPOCH), Holder.HERE_ADRIFT),
    "running here, forgotten": Case(RUNNING, arrival(), Resumed(1, EPOCH), Holder.HERE_FORGOTTEN),
    "running here, forgotten, no slot": Case(
        RUNNING, replace(CURRENT, has_slot=False), NeedsSlot, Holder.HERE_FORGOTTEN
    ),
    "running here, a dead letter of it": Case(
        RUNNING, replace(CURRENT, poisoning=Poisoning.DELIVERY_LIMIT), GivenBody, Holder.HERE_ADRIFT
    ),
    # running elsewhere
    "running elsewhere": Case(RUNNING, arrival(), GivenBody, Holder.ELSEWHERE),
    "running elsewhere, cancel asked": Case(
        replace(RUNNING, is_cancel_requested=True), CURRENT, GivenBody, Holder.ELSEWHERE
    ),
    # worker dead
    "takeover asks for the lane": Case(RUNNING, arrival(), NeedsLane, Holder.DEAD),
    "takeover, the lane busy": Case(RUNNING, replace(arrival(), lane=Lane.BUSY), GivenBody, Holder.DEAD),
    "takeover in the lane": Case(
        RUNNING, replace(arrival(), lane=Lane.HELD), Claimed(2, EPOCH + 1, after_crash=True), Holder.DEAD
    ),
    "takeover, attempts used up": Case(
        replace(RUNNING, attempt=MAX_ATTEMPTS), arrival(), Refused, Holder.DEAD
    ),
    "takeover, cancel asked": Case(
        replace(RUNNING, is_cancel_requested=True, attempt=MAX_ATTEMPTS),
        arrival(),
        CancelledBefore,
        Holder.DEAD,
    ),
    "takeover, past its not-after": Case(
        RUNNING, arrival(message(0, not_after=PAST)), GivenBody, Holder.DEAD
    ),
    "takeover by who can't run it": Case(
        RUNNING, replace(arrival(), refusal=UNKNOWN), GivenBody, Holder.DEAD
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_arrival_table(case: Case) -> None:
    decision = decide(case.row, case.arrival, case.holder)

    if isinstance(case.expected, type):
        assert type(decision) is case.expected
    else:
        assert decision == case.expected


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("the policy was tightened", Reason.ATTEMPTS_EXHAUSTED),
        ("given up for the third time", Reason.DELIVERY_LIMIT),
        ("takeover, attempts used up", Reason.CRASHED),
        ("past its deadline", Reason.TIMEOUT),
        ("takeover past its deadline", Reason.TIMEOUT),
    ],
)
def test_a_refusal_of_ours_says_why(case: str, reason: Reason) -> None:
    decision = decide(CASES[case].row, CASES[case].arrival, CASES[case].holder)

    assert isinstance(decision, Refused)
    assert decision.reason is reason


# --- laws over every combination -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Meeting:
    row: Task | None
    arrival: Arrival
    holder: Holder
    decision: Decision


def rows() -> Iterator[tuple[Task | None, Holder]]:
    yield None, Holder.NOBODY
    for state, attempt, is_cancelled, reason, poisonings in itertools.product(
        TaskState, (0, 1, MAX_ATTEMPTS), (False, True), (None, Reason.CRASHED), (0, MAX_POISONINGS - 1)
    ):
        made = replace(
            row(state, attempt=attempt),
            is_cancel_requested=is_cancelled,
            reason=reason,
            poisonings=poisonings,
        )
        if state is not TaskState.RUNNING:
            yield made, Holder.NOBODY
            continue
        for holder in (
            each for each in Holder if each is not Holder.NOBODY
        ):  # in one order for all processes
            yield replace(made, worker=HERE if holder.name.startswith("HERE") else THERE), holder


def arrivals() -> Iterator[Arrival]:
    for epoch, deliver_at, not_after, refusal, poisoning, has_slot, lane in itertools.product(
        (EPOCH - 1, EPOCH),
        (None, LATER),
        (None, PAST),
        (None, UNKNOWN, MALFORMED),
        (None, *Poisoning),
        (False, True),
        Lane,
    ):
        of = message(epoch, deliver_at=deliver_at, not_after=not_after)
        yield Arrival(of, DIGEST, MAX_ATTEMPTS, None, refusal, poisoning, has_slot, lane)


DIGEST = message().digest()


@pytest.fixture(scope="module")
def meetings() -> list[Meeting]:
    """Every combination of what a row, its holder and a delivery can be."""
    return [
        Meeting(task, of, holder, meet(task, of, holder=holder, now=NOW, grace=GRACE))
        for (task, holder), of in itertools.product(list(rows()), list(arrivals()))
    ]


def where(meetings: list[Meeting], is_such: Callable[[Meeting], bool]) -> list[Meeting]:
    found = [meeting for meeting in meetings if is_such(meeting)]
    assert found, "a law about nothing says nothing"
    return found


def is_decided(*kinds: type[Decision]) -> Callable[[Meeting], bool]:
    return lambda meeting: isinstance(meeting.decision, kinds)


def state_of(meeting: Meeting) -> TaskState | None:
    return meeting.row.state if meeting.row else None


RUNS = (Claimed, Resumed)
WRITES = (Claimed, Refused, PutOff, Reemitted, Expired, CancelledBefore, GivenBody)
SETTLES = (Adopted, Duplicate, Conflicting, NeedsSlot, NeedsLane, Resumed)


UNTAKEN = Refusal(Reason.OVERSIZE, Failure("ContractError"))


def untaken() -> Arrival:
    """A delivery of the same message whose body was too large for this process."""
    body = UntakenBody.of(Properties(), size=10**9, digest=CURRENT.digest)
    return replace(CURRENT, message=replace(CURRENT.message, body=body), refusal=UNTAKEN)


@pytest.mark.parametrize(("task", "holder"), [(row, holder) for row, holder in rows() if row is not None])
def test_a_body_that_was_not_taken_is_never_given_to_a_row_or_a_run(task: Task, holder: Holder) -> None:
    decision = decide(task, untaken(), holder)

    assert not isinstance(decision, GivenBody | Adopted | PutOff | Reemitted | Claimed | Resumed)


def test_a_body_that_was_not_taken_ends_what_only_it_could_go_on_with() -> None:
    assert decide(None, untaken()) == Refused(Reason.OVERSIZE, UNTAKEN.failure)
    assert decide(RUNNING, untaken(), Holder.DEAD) == Refused(Reason.OVERSIZE, UNTAKEN.failure)
    assert decision_of(RUNNING, untaken(), Holder.ELSEWHERE) is Duplicate


def test_every_kind_of_decision_occurs(meetings: list[Meeting]) -> None:
    assert {type(meeting.decision) for meeting in meetings} == {*WRITES, *SETTLES} - {Conflicting}


def test_a_finished_task_makes_every_delivery_a_duplicate(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, lambda m: state_of(m) in TERMINAL):
        assert isinstance(meeting.decision, Duplicate)


def test_an_older_copy_of_a_waiting_task_is_a_duplicate_whatever_else_it_is(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, lambda m: state_of(m) in WAITING and m.arrival.message.epoch < EPOCH):
        assert isinstance(meeting.decision, Duplicate)


def test_a_current_copy_is_never_dropped(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, lambda m: state_of(m) in WAITING and m.arrival.message.epoch >= EPOCH):
        assert not isinstance(meeting.decision, Duplicate | Adopted | Resumed)


def test_a_task_that_a_live_worker_runs_gets_no_second_run(meetings: list[Meeting]) -> None:
    alive = {Holder.HERE, Holder.HERE_ADRIFT, Holder.ELSEWHERE}
    for meeting in where(meetings, lambda m: m.holder in alive):
        assert isinstance(meeting.decision, Duplicate | Adopted | GivenBody)


def test_only_a_run_that_memory_lost_is_resumed_and_under_its_own_claim(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(Resumed)):
        assert meeting.holder is Holder.HERE_FORGOTTEN
        assert meeting.row is not None
        assert meeting.decision == Resumed(meeting.row.attempt, meeting.row.epoch)


def test_a_claim_raises_epoch_and_attempt_by_one(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(Claimed)):
        attempt, epoch = (meeting.row.attempt, meeting.row.epoch) if meeting.row else (0, 0)
        crashed = meeting.holder is Holder.DEAD
        assert meeting.decision == Claimed(attempt + 1, epoch + 1, after_crash=crashed)


def test_no_claim_goes_beyond_the_policy(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(Claimed)):
        assert isinstance(meeting.decision, Claimed)
        assert meeting.decision.attempt <= MAX_ATTEMPTS


def test_a_run_needs_a_slot_and_a_message_that_can_be_run(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(*RUNS)):
        assert meeting.arrival.has_slot
        assert meeting.arrival.refusal is None
        assert meeting.arrival.poisoning is None


def test_a_crasher_and_a_takeover_run_only_in_the_lane(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(Claimed)):
        if meeting.holder is Holder.DEAD or (meeting.row and meeting.row.is_crasher):
            assert meeting.arrival.lane is Lane.HELD


def test_the_lane_is_asked_for_only_where_it_is_free(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(NeedsLane)):
        assert meeting.arrival.lane is Lane.FREE


def test_with_what_it_asked_for_a_delivery_is_not_asked_again(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(NeedsSlot, NeedsLane)):
        better = replace(meeting.arrival, has_slot=True, lane=Lane.HELD)
        assert isinstance(decide(meeting.row, better, meeting.holder), Claimed | Resumed)


def test_nothing_begins_before_deliver_at_or_after_not_after(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(Claimed)):
        if meeting.holder is not Holder.DEAD:  # a takeover goes on with what began in time
            assert (meeting.arrival.message.deliver_at or NOW) <= NOW
            assert (meeting.arrival.message.not_after or NOW) >= NOW


def test_a_cancelled_task_starts_no_attempt(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, lambda m: m.row is not None and m.row.is_cancel_requested):
        assert not isinstance(meeting.decision, Claimed)


def test_grace_is_only_for_what_another_release_may_know(meetings: list[Meeting]) -> None:
    for meeting in where(
        meetings, lambda m: isinstance(m.decision, PutOff) and m.decision.refusal is not None
    ):
        assert isinstance(meeting.decision, PutOff)
        assert meeting.decision.refusal is not None
        assert meeting.decision.refusal.reason in GRACE_REASONS


def test_a_put_off_delivery_waits_for_a_positive_time(meetings: list[Meeting]) -> None:
    for meeting in where(meetings, is_decided(PutOff)):
        assert isinstance(meeting.decision, PutOff)
        assert meeting.decision.delay > timedelta(0)


def test_another_message_with_the_same_identity_never_touches_the_row() -> None:
    for (task, holder), of in itertools.product(list(rows())[1:], itertools.islice(arrivals(), 0, None, 29)):
        decision = decide(task, replace(of, digest=b"other"), holder)
        assert isinstance(decision, Conflicting)


def test_a_conflict_writes_no_step_but_a_letter() -> None:
    of = replace(CURRENT, message=replace(CURRENT.message, body=b"[]"), digest=b"other")

    letter = conflict_letter(Conflicting(), QUEUED, of)

    assert step_of_decision(Conflicting(), QUEUED, of, worker=HERE) is None
    assert letter is not None
    assert (letter.reason, letter.body, letter.task_key) == (Reason.CONFLICT, b"[]", None)
    assert conflict_letter(Duplicate(), QUEUED, CURRENT) is None


def test_every_decision_has_a_legal_step_or_only_settles(meetings: list[Meeting]) -> None:
    seen = set()
    for meeting in meetings:
        kind = (type(meeting.decision), state_of(meeting), meeting.holder)
        if kind in seen:
            continue
        seen.add(kind)
        step = step_of_decision(meeting.decision, meeting.row, meeting.arrival, worker=HERE)
        assert (step is None) == isinstance(meeting.decision, SETTLES)
        if step is not None:
            before = meeting.row.state if meeting.row else TaskState.QUEUED
            assert step.before == meeting.row
            assert step.after.state in TRANSITIONS[before] or step.after.state is before
    assert {kind for kind, _, _ in seen} == {*WRITES, *SETTLES} - {Conflicting}


def test_equal_arguments_give_equal_decisions() -> None:
    for case in CASES.values():
        first = decide(case.row, case.arrival, case.holder)
        second = decide(case.row, case.arrival, case.holder)
        assert type(first) is type(second)


def test_the_grace_ends_after_few_waits() -> None:
    now, waits = NOW, 0
    refused_at: datetime | None = None
    while True:
        decision = meet(
            replace(QUEUED, refused_at=refused_at),
            replace(CURRENT, refusal=UNKNOWN),
            holder=Holder.NOBODY,
            now=now,
            grace=GRACE,
        )
        if not isinstance(decision, PutOff):
            break
        refused_at = decision.refused_at
        now += decision.delay
        waits += 1

    assert isinstance(decision, Refused)
    assert now == NOW + GRACE
    assert waits < 15


def test_an_unknown_task_for_later_waits_for_its_time_and_not_for_its_grace() -> None:
    later = replace(arrival(), message=replace(arrival().message, deliver_at=NOW + timedelta(days=1)))
    unknown = replace(later, refusal=Refusal(Reason.UNKNOWN_TASK, Failure("UnknownTask")))

    decision = meet(None, unknown, holder=Holder.NOBODY, now=NOW, grace=timedelta(minutes=5))

    assert isinstance(decision, PutOff)
    assert (decision.delay, decision.is_exact) == (timedelta(days=1), True)

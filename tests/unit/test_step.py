from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from broker_worker.failure import Refusal
from broker_worker.message import Message, TaskId, copy_properties, decode
from broker_worker.outcome import (
    Cancelled,
    Dead,
    Failure,
    Outcome,
    Postponed,
    Reason,
    Released,
    Succeeded,
)
from broker_worker.step import (
    Claim,
    Copy,
    Step,
    new_row,
    step_of_cancel,
    step_of_decision,
    step_of_forgotten,
    step_of_loss,
    step_of_outcome,
    step_of_overdue,
    step_of_replay,
    step_of_rescue,
)
from broker_worker.task import (
    MAX_INTERRUPTIONS,
    TERMINAL,
    TRANSITIONS,
    WAITING,
    Arrival,
    CancelledBefore,
    Claimed,
    Decision,
    Expired,
    GivenBody,
    PutOff,
    Reemitted,
    Refused,
    Task,
    TaskState,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HERE = UUID(int=1)
THERE = UUID(int=2)
TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(TASK, b'{"to": 1}', reply_to="answers", correlation_id="c-1")
ARRIVAL = Arrival(MESSAGE, MESSAGE.digest(), max_attempts=3, keeps_reply=True)
FAILURE = Failure("ValueError", "no")
QUEUED = Task(1, TASK, TaskState.QUEUED, 1, 3, epoch=5, worker=THERE, digest=MESSAGE.digest(), has_body=True)
RETRYING = replace(QUEUED, state=TaskState.RETRYING)
RUNNING = replace(QUEUED, state=TaskState.RUNNING, worker=HERE, has_body=False)
ABANDONED = replace(RUNNING, worker=THERE, has_body=True)
CANCELLING = replace(RUNNING, is_cancel_requested=True)


def decided(decision: Decision, row: Task | None, arrival: Arrival = ARRIVAL) -> Step:
    step = step_of_decision(decision, row, arrival, worker=HERE)
    assert step is not None
    return step


def ended(outcome: Outcome, row: Task = RUNNING) -> Step:
    return step_of_outcome(Claim(row, MESSAGE), outcome, row)


REFUSED = Refused(Reason.MALFORMED, FAILURE)
GRACE = PutOff(timedelta(seconds=5), Refusal(Reason.UNKNOWN_TASK, FAILURE), NOW)
STEPS = {
    "claimed, new": decided(Claimed(1, 1), None),
    "claimed, queued": decided(Claimed(2, 6), QUEUED),
    "claimed, retrying": decided(Claimed(2, 6), RETRYING),
    "taken over": decided(Claimed(2, 6, after_crash=True), ABANDONED),
    "refused, new": decided(REFUSED, None),
    "refused, queued": decided(REFUSED, QUEUED),
    "refused, retrying": decided(REFUSED, RETRYING),
    "refused, crashed": decided(Refused(Reason.CRASHED, FAILURE), ABANDONED),
    "put off, new": decided(GRACE, None),
    "put off, queued": decided(GRACE, QUEUED),
    "put off, retrying": decided(GRACE, RETRYING),
    "put off exactly": decided(PutOff(timedelta(days=9), is_exact=True), QUEUED),
    "reemitted, new": decided(Reemitted(), None),
    "reemitted, queued": decided(Reemitted(), QUEUED),
    "reemitted, retrying": decided(Reemitted(), RETRYING),
    "expired, new": decided(Expired(), None),
    "expired, queued": decided(Expired(), QUEUED),
    "cancelled before": decided(CancelledBefore(), QUEUED),
    "cancelled at takeover": decided(CancelledBefore(), ABANDONED),
    "given body": decided(GivenBody(), RUNNING),
    "given body again": decided(GivenBody(), ABANDONED),
    "succeeded": ended(Succeeded("1")),
    "succeeded though cancelling": ended(Succeeded("1"), CANCELLING),
    "postponed": ended(Postponed(timedelta(seconds=9), FAILURE)),
    "postponed, timeout": ended(Postponed(timedelta(seconds=9), FAILURE, Reason.TIMEOUT)),
    "postponed though cancelling": ended(Postponed(timedelta(seconds=9), FAILURE), CANCELLING),
    "dead": ended(Dead(Reason.GAVE_UP, FAILURE)),
    "dead though cancelling": ended(Dead(Reason.GAVE_UP, FAILURE), CANCELLING),
    "cancelled": ended(Cancelled()),
    "released": ended(Released()),
    "released though cancelling": ended(Released(), CANCELLING),
    "released too often": ended(Released(), replace(RUNNING, interruptions=MAX_INTERRUPTIONS - 1)),
    "rescued": step_of_rescue(ABANDONED, MESSAGE),
    "rescued, used up": step_of_rescue(replace(ABANDONED, attempt=3), MESSAGE),
    "rescued, cancelling": step_of_rescue(replace(ABANDONED, is_cancel_requested=True, attempt=3), MESSAGE),
    "forgotten": step_of_forgotten(ABANDONED, MESSAGE),
    "overdue, queued": step_of_overdue(QUEUED, MESSAGE),
    "overdue, retrying": step_of_overdue(RETRYING, MESSAGE),
    "lost": step_of_loss(replace(ABANDONED, has_body=False)),
    "cancel, queued": step_of_cancel(QUEUED),
    "cancel, retrying": step_of_cancel(RETRYING),
    "cancel, running": step_of_cancel(RUNNING),
    "replay": step_of_replay(replace(QUEUED, state=TaskState.DEAD, has_body=False), MESSAGE),
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())


# --- laws ----------------------------------------------------------------------


@every_step
def test_every_step_is_legal(step: Step) -> None:
    before = step.before.state if step.before else TaskState.QUEUED

    assert step.after.state is before or step.after.state in TRANSITIONS[before]


@every_step
def test_a_task_that_waits_keeps_its_body_and_one_that_ended_does_not(step: Step) -> None:
    if step.after.state in WAITING:
        assert step.after.has_body
        assert step.message is not None
    if step.after.state in TERMINAL:
        assert not step.after.has_body


@every_step
def test_a_copy_is_owed_exactly_where_a_task_is_to_wait(step: Step) -> None:
    assert (step.copy is not None) == (step.after.state in WAITING)


@every_step
def test_a_date_is_set_exactly_where_a_copy_is_owed(step: Step) -> None:
    assert step.due_in == (step.copy.delay if step.copy else None)


@every_step
def test_a_dead_letter_is_owed_exactly_where_a_task_dies(step: Step) -> None:
    assert (step.letter is not None) == (step.after.state is TaskState.DEAD)
    if step.letter is not None:
        assert step.after.reason is step.letter.reason
        assert step.failure == step.letter.failure
        assert step.letter.epoch == step.after.epoch


@every_step
def test_the_epoch_never_falls(step: Step) -> None:
    if step.before is not None:
        assert step.after.epoch - step.before.epoch in {0, 1}


@every_step
def test_a_charge_is_only_made_by_a_claim(step: Step) -> None:
    charged = step.after.attempt - (step.before.attempt if step.before else 0)

    if charged > 0:
        assert charged == 1
        assert step.after.state is TaskState.RUNNING


@every_step
def test_a_run_that_ends_without_success_is_recorded_under_its_worker(step: Step) -> None:
    if step.before is None or step.before.state is not TaskState.RUNNING or step.before == step.after:
        assert step.record is None
        return
    stays = step.after.state is TaskState.RUNNING and step.after.epoch == step.before.epoch
    assert (step.record is None) == (step.after.state is TaskState.SUCCEEDED or stays)
    if step.record is not None:
        record = step.record
        assert (record.attempt, record.epoch, record.worker) == (
            step.before.attempt,
            step.before.epoch,
            step.before.worker,
        )


# --- decisions -----------------------------------------------------------------


def test_a_new_row_is_what_the_publisher_said() -> None:
    not_after = NOW + timedelta(hours=1)

    row = new_row(replace(ARRIVAL, message=replace(MESSAGE, not_after=not_after)))

    assert (row.state, row.attempt, row.epoch, row.worker) == (TaskState.QUEUED, 0, 0, None)
    assert (row.max_attempts, row.not_after) == (3, not_after)
    assert (row.reply_to, row.correlation_id) == ("answers", "c-1")


def test_a_reply_queue_that_is_not_allowed_is_not_kept() -> None:
    assert new_row(replace(ARRIVAL, keeps_reply=False)).reply_to is None


def test_a_claim_is_this_workers_under_the_policy_of_now() -> None:
    step = decided(
        Claimed(2, 6), replace(QUEUED, refused_at=NOW, max_attempts=9), replace(ARRIVAL, max_attempts=4)
    )

    assert step.after.state is TaskState.RUNNING
    assert (step.after.attempt, step.after.epoch, step.after.worker) == (2, 6, HERE)
    assert (step.after.max_attempts, step.after.refused_at) == (4, None)


def test_a_takeover_records_the_crash_of_the_other_worker() -> None:
    record = STEPS["taken over"].record

    assert record is not None
    assert (record.outcome, record.worker, record.attempt, record.epoch) == ("crashed", THERE, 1, 5)


def test_a_task_that_is_taken_over_stays_a_crasher_until_its_run_ends() -> None:
    taken_over = STEPS["taken over"].after

    assert taken_over.is_crasher
    assert ended(Released(), taken_over).after.is_crasher
    assert not ended(Postponed(timedelta(0), FAILURE), taken_over).after.is_crasher


def test_a_refused_new_message_is_a_dead_row_at_attempt_zero() -> None:
    step = STEPS["refused, new"]

    assert step.before is None
    assert (step.after.state, step.after.attempt, step.after.reason) == (
        TaskState.DEAD,
        0,
        Reason.MALFORMED,
    )


def test_a_put_off_task_waits_in_its_state_with_a_new_epoch_and_without_a_charge() -> None:
    step = STEPS["put off, retrying"]

    assert (step.after.state, step.after.attempt, step.after.epoch) == (TaskState.RETRYING, 1, 6)
    assert (step.after.reason, step.after.refused_at) == (Reason.UNKNOWN_TASK, NOW)
    assert step.copy == Copy(timedelta(seconds=5))


def test_an_exact_wait_is_owed_exactly() -> None:
    assert STEPS["put off exactly"].copy == Copy(timedelta(days=9), is_exact=True)


def test_a_reemission_counts_the_poisoning() -> None:
    step = STEPS["reemitted, queued"]

    assert (step.after.poisonings, step.after.epoch, step.after.attempt) == (1, 6, 1)


def test_a_body_given_twice_changes_nothing() -> None:
    assert STEPS["given body"].after == replace(RUNNING, has_body=True)
    assert STEPS["given body again"].before == STEPS["given body again"].after


# --- outcomes ------------------------------------------------------------------


def test_a_success_counts_although_an_operator_asked_for_the_end() -> None:
    assert STEPS["succeeded though cancelling"].after.state is TaskState.SUCCEEDED


def test_a_failure_is_charged_and_its_copy_carries_the_claims_epoch() -> None:
    step = STEPS["postponed, timeout"]

    assert (step.after.state, step.after.attempt, step.after.epoch) == (TaskState.RETRYING, 1, 5)
    assert step.after.reason is Reason.TIMEOUT
    assert step.copy == Copy(timedelta(seconds=9))
    assert step.record is not None
    assert step.record.outcome == "timeout"


def test_a_failure_without_a_code_is_recorded_as_failed() -> None:
    record = STEPS["postponed"].record

    assert record is not None
    assert (record.outcome, record.failure) == ("failed", FAILURE)


@pytest.mark.parametrize("name", ["postponed though cancelling", "released though cancelling", "cancelled"])
def test_what_would_run_again_is_cancelled_where_an_operator_asked(name: str) -> None:
    assert STEPS[name].after.state is TaskState.CANCELLED


def test_what_would_die_is_cancelled_without_a_dead_letter_where_an_operator_asked() -> None:
    step = STEPS["dead though cancelling"]

    assert (step.after.state, step.after.reason, step.letter) == (TaskState.CANCELLED, None, None)
    assert step.record is not None
    assert (step.record.outcome, step.record.failure) == ("cancelled", FAILURE)


def test_a_release_gives_the_charge_back_and_counts_itself() -> None:
    step = STEPS["released"]

    assert (step.after.state, step.after.attempt, step.after.epoch) == (TaskState.QUEUED, 0, 5)
    assert step.after.interruptions == 1
    assert step.copy == Copy()
    assert step.record is not None
    assert step.record.outcome == "released"


def test_the_fiftieth_release_is_the_last() -> None:
    step = STEPS["released too often"]

    assert MAX_INTERRUPTIONS == 50
    assert (step.after.state, step.after.reason) == (TaskState.DEAD, Reason.INTERRUPTED)
    assert ended(Released(), replace(RUNNING, interruptions=48)).after.state is TaskState.QUEUED


# --- rescues -------------------------------------------------------------------


def test_a_rescue_is_charged_as_a_crash_and_makes_older_copies_stale() -> None:
    step = STEPS["rescued"]

    assert (step.after.state, step.after.attempt, step.after.epoch) == (TaskState.RETRYING, 1, 6)
    assert step.after.is_crasher
    assert step.copy == Copy()


def test_a_rescue_of_the_last_attempt_is_death_by_crash() -> None:
    assert STEPS["rescued, used up"].after.reason is Reason.CRASHED


def test_a_rescue_of_a_cancelled_task_is_its_end() -> None:
    assert STEPS["rescued, cancelling"].after.state is TaskState.CANCELLED


def test_a_forgotten_task_is_released_uncharged() -> None:
    assert STEPS["forgotten"] == step_of_outcome(Claim(ABANDONED, MESSAGE), Released(), ABANDONED)


def test_an_overdue_task_gets_a_newer_copy_and_stays_as_it_is() -> None:
    step = STEPS["overdue, retrying"]

    assert step.after == replace(RETRYING, epoch=6, reemissions=1)


def test_a_lost_task_is_dead_with_a_letter_without_a_body() -> None:
    step = STEPS["lost"]

    assert step.letter is not None
    assert (step.letter.reason, step.letter.body, step.letter.task_key) == (Reason.LOST, b"", 1)
    assert step.letter.id == step_of_loss(ABANDONED).letter.id  # type: ignore[union-attr]


# --- people --------------------------------------------------------------------


def test_a_cancel_ends_what_waits_and_asks_what_runs() -> None:
    assert STEPS["cancel, queued"].after.state is TaskState.CANCELLED
    assert STEPS["cancel, running"].after == CANCELLING


def test_a_replay_begins_from_the_start_but_never_with_an_old_epoch() -> None:
    dead = replace(
        QUEUED, state=TaskState.DEAD, has_body=False, attempt=3, interruptions=7, poisonings=2, reemissions=4,
        refused_at=NOW, reason=Reason.GAVE_UP, is_cancel_requested=True, not_after=NOW, deadline_at=NOW,
    )  # fmt: skip

    step = step_of_replay(dead, MESSAGE)

    assert step.after == replace(QUEUED, attempt=0, epoch=6)


def test_a_replay_outlives_the_publishers_time_limit() -> None:
    late = replace(MESSAGE, not_after=NOW, deliver_at=NOW, headers={"tenant-id": "t"})

    step = step_of_replay(replace(QUEUED, state=TaskState.DEAD), late)

    assert step.message is not None
    properties = copy_properties(step.message, epoch=6, attempt=0)
    arrived = decode(properties, b"{}", queue="email", now=NOW, max_body_bytes=9)
    assert isinstance(arrived, Message)
    assert arrived.not_after is None
    assert arrived.headers["tenant-id"] == "t"

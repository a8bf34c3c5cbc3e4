"""The inbox: what a delivery meets and what a run leaves, the same in memory and in Postgres."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from broker_worker.dead_letter import letter_of_stranger
from broker_worker.errors import StoreDataError, StoreUnavailableError
from broker_worker.failure import Refusal
from broker_worker.message import Message, Properties, TaskId
from broker_worker.outcome import Cancelled, Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.outgoing import Kind
from broker_worker.store.database import LIMITS, LimitedConnection
from broker_worker.task import (
    Adopted,
    CancelledBefore,
    Claimed,
    Conflicting,
    Duplicate,
    Expired,
    GivenBody,
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
)
from tests.support.worlds import GRACE, MAX_ATTEMPTS, Arrived, Attempt, PostgresWorld, World, said

TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(TASK, b'{"to": 1}', headers={"tenant-id": "t"}, correlation_id="c-1")
FAILURE = Failure("ValueError", "no", "trace", "f-1")
FAILED = Postponed(timedelta(seconds=30), FAILURE)
UNKNOWN = Refusal(Reason.UNKNOWN_TASK, Failure("UnknownTask", "no handler"))
MALFORMED = Refusal(Reason.MALFORMED, Failure("ContractError", "no JSON"))


def numbered(number: int) -> Message:
    return replace(MESSAGE, task=TASK._replace(id=f"m-{number}"))


def copy_of(row: Task) -> Message:
    return replace(MESSAGE, epoch=row.epoch)


# --- no row ----------------------------------------------------------------------


async def test_a_new_message_is_claimed_and_remembered(world: World) -> None:
    worker = await world.join()

    claim = await worker.claim(MESSAGE)

    row = await world.row(TASK)
    assert claim.row == row
    assert (row.state, row.attempt, row.epoch, row.worker) == (TaskState.RUNNING, 1, 1, worker.id)
    assert (row.max_attempts, row.digest, row.has_body) == (MAX_ATTEMPTS, MESSAGE.digest(), False)
    assert not claim.may_be_repeat
    assert len(worker.runs) == 1
    assert await world.stored(TASK) is None


async def test_a_redelivered_message_may_be_a_repeat(world: World) -> None:
    worker = await world.join()

    claim = await worker.claim(MESSAGE, delivery=Arrived(MESSAGE, redelivered=True))

    assert claim.may_be_repeat


async def test_without_a_slot_nothing_is_written(world: World) -> None:
    worker = await world.join()

    met = await worker.arrive(MESSAGE, has_slot=False)

    assert isinstance(met.decision, NeedsSlot)
    assert await world.find(TASK) is None


async def test_a_refused_new_message_is_a_dead_row_with_a_letter(world: World) -> None:
    worker = await world.join()

    met = await worker.arrive(MESSAGE, refusal=MALFORMED)

    row = await world.row(TASK)
    assert isinstance(met.decision, Refused)
    assert (row.state, row.attempt, row.reason) == (TaskState.DEAD, 0, Reason.MALFORMED)
    letters = await world.letters()
    assert [(letter.reason, letter.body, letter.task_key) for letter in letters] == [
        ("malformed", MESSAGE.body, row.key)
    ]
    assert [owed.outgoing.kind for owed in worker.owed] == [Kind.DEAD_LETTER]


async def test_a_new_message_of_an_unknown_task_waits_for_its_grace(world: World) -> None:
    worker = await world.join()

    met = await worker.arrive(MESSAGE, refusal=UNKNOWN)

    row = await world.row(TASK)
    assert isinstance(met.decision, PutOff)
    assert (row.state, row.attempt, row.epoch, row.reason) == (TaskState.QUEUED, 0, 1, Reason.UNKNOWN_TASK)
    assert row.refused_at is not None
    assert said(await world.stored(TASK)) == said(MESSAGE)
    (owed,) = worker.owed
    assert (owed.outgoing.delay, owed.outgoing.properties.headers["bw-epoch"]) == (timedelta(seconds=5), 1)


async def test_the_grace_ends_in_death_or_in_a_run(world: World) -> None:
    worker = await world.join()
    for number in (1, 2):
        await worker.arrive(numbered(number), refusal=UNKNOWN)
    await world.pass_time(GRACE)

    refused = await worker.arrive(replace(numbered(1), epoch=1), refusal=UNKNOWN)
    claimed = await worker.arrive(replace(numbered(2), epoch=1))

    assert isinstance(refused.decision, Refused)
    assert (await world.row(numbered(1).task)).reason is Reason.UNKNOWN_TASK
    assert claimed.decision == Claimed(1, 2)
    assert (await world.row(numbered(2).task)).refused_at is None


async def test_a_message_for_later_waits_in_the_database_until_then(world: World) -> None:
    worker = await world.join()
    message = replace(MESSAGE, deliver_at=await world.now() + timedelta(hours=1))

    met = await worker.arrive(message)

    assert isinstance(met.decision, PutOff)
    assert (await world.row(TASK)).state is TaskState.QUEUED
    assert worker.owed == []
    assert await worker.outbox.take(9) == []
    await world.pass_time(timedelta(hours=1, seconds=1))
    (owed,) = await worker.outbox.take(9)
    assert owed.outgoing.delay == timedelta(0)


async def test_a_message_past_its_time_is_a_row_and_no_letter(world: World) -> None:
    worker = await world.join()
    message = replace(MESSAGE, not_after=await world.now() - timedelta(seconds=1))

    met = await worker.arrive(message)

    assert isinstance(met.decision, Expired)
    assert (await world.row(TASK)).state is TaskState.EXPIRED
    assert await world.letters() == []


async def test_a_message_in_time_is_claimed(world: World) -> None:
    worker = await world.join()

    claim = await worker.claim(replace(MESSAGE, not_after=await world.now() + timedelta(hours=1)))

    assert claim.row == await world.row(TASK)
    assert claim.row.not_after is not None


async def test_what_the_broker_gave_up_is_sent_again_twice_and_then_dead(world: World) -> None:
    worker = await world.join()

    decisions = []
    message = MESSAGE
    for _ in range(3):
        met = await worker.arrive(message, poisoning=Poisoning.DELIVERY_LIMIT)
        decisions.append(type(met.decision))
        message = copy_of(await world.row(TASK))

    row = await world.row(TASK)
    assert decisions == [Reemitted, Reemitted, Refused]
    assert (row.state, row.reason, row.attempt) == (TaskState.DEAD, Reason.DELIVERY_LIMIT, 0)


# --- conflict and terminal ---------------------------------------------------------


@pytest.mark.parametrize("outcome", [None, FAILED, Succeeded()], ids=["running", "retrying", "succeeded"])
async def test_another_message_with_the_same_id_is_a_letter_and_the_row_stays(
    world: World, outcome: Outcome | None
) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE)
    if outcome is not None:
        await worker.record(claim, outcome)
    before = await world.row(TASK)

    mets = [await other.arrive(replace(MESSAGE, body=b"[]", epoch=9)) for _ in range(2)]

    assert all(isinstance(met.decision, Conflicting) for met in mets)
    assert await world.row(TASK) == before
    letters = await world.letters()
    assert [(letter.reason, letter.body, letter.task_key) for letter in letters] == [
        ("conflict", b"[]", None)
    ]
    assert len(other.owed) == 1


@pytest.mark.parametrize(
    "outcome",
    [Succeeded("1"), Dead(Reason.GAVE_UP, FAILURE), Cancelled()],
    ids=["succeeded", "dead", "cancelled"],
)
async def test_a_finished_task_makes_every_delivery_a_duplicate(world: World, outcome: Outcome) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, outcome)
    before = await world.row(TASK)

    mets = [await other.arrive(replace(MESSAGE, epoch=epoch)) for epoch in (0, 1, 99)]

    assert all(isinstance(met.decision, Duplicate) for met in mets)
    assert await world.row(TASK) == before


# --- waiting -----------------------------------------------------------------------


async def test_the_current_copy_of_a_waiting_task_is_claimed_and_an_older_one_is_a_duplicate(
    world: World,
) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, FAILED)
    row = await world.row(TASK)

    older = await other.arrive(MESSAGE)
    current = await other.arrive(copy_of(row))

    assert isinstance(older.decision, Duplicate)
    assert current.decision == Claimed(2, 2)
    row = await world.row(TASK)
    assert (row.state, row.attempt, row.epoch, row.worker) == (TaskState.RUNNING, 2, 2, other.id)
    assert row.has_body
    assert current.claim is not None
    assert current.claim.may_be_repeat


async def test_a_copy_starts_at_most_one_run(world: World) -> None:
    workers = [await world.join() for _ in range(3)]
    await workers[0].finish(MESSAGE, FAILED)
    message = copy_of(await world.row(TASK))

    mets = await asyncio.gather(*(worker.arrive(message) for worker in workers))

    assert sorted(type(met.decision).__name__ for met in mets) == ["Claimed", "GivenBody", "GivenBody"]


async def test_a_cancelled_task_that_waits_ends_at_its_next_copy(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, FAILED)
    await world.edit(TASK, is_cancel_requested=True)

    met = await worker.arrive(copy_of(await world.row(TASK)))

    assert isinstance(met.decision, CancelledBefore)
    assert (await world.row(TASK)).state is TaskState.CANCELLED
    assert await world.stored(TASK) is None


async def test_a_waiting_task_expires(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, FAILED)
    past = await world.now() - timedelta(seconds=1)

    met = await worker.arrive(replace(copy_of(await world.row(TASK)), not_after=past))

    assert isinstance(met.decision, Expired)
    assert (await world.row(TASK)).state is TaskState.EXPIRED


async def test_a_crasher_waits_for_its_lane_without_a_charge(world: World) -> None:
    gone, worker = await world.join(), await world.join()
    await gone.claim(MESSAGE)
    await worker.arrive(MESSAGE)  # which gives the row its body
    await world.kill(gone)
    await worker.rescues.rescue()
    message = copy_of(await world.row(TASK))

    free = await worker.arrive(message)
    busy = await worker.arrive(message, lane=Lane.BUSY)
    held = await worker.arrive(copy_of(await world.row(TASK)), lane=Lane.HELD)

    assert isinstance(free.decision, NeedsLane)
    assert isinstance(busy.decision, PutOff)
    assert held.decision == Claimed(2, 4)


async def test_a_task_whose_child_crashed_needs_no_lane(world: World) -> None:
    """It has hurt nobody else."""
    worker = await world.join()
    await worker.finish(MESSAGE, Postponed(timedelta(0), FAILURE, Reason.CRASHED))

    met = await worker.arrive(copy_of(await world.row(TASK)), lane=Lane.BUSY)

    assert met.decision == Claimed(2, 2)
    assert [each.outcome for each in await world.attempts(TASK)] == ["crashed"]


# --- running -----------------------------------------------------------------------


async def test_a_delivery_of_a_run_in_this_process_is_a_duplicate(world: World) -> None:
    worker = await world.join()
    await worker.claim(MESSAGE)

    met = await worker.arrive(MESSAGE)

    assert isinstance(met.decision, Duplicate)


async def test_a_run_that_lost_its_channel_adopts_the_next_delivery(world: World) -> None:
    worker = await world.join()
    lost, found = Arrived(MESSAGE), Arrived(MESSAGE, redelivered=True)
    claim = await worker.claim(MESSAGE, delivery=lost)
    lost.is_alive = False

    met = await worker.arrive(MESSAGE, delivery=found)

    assert met.decision == Adopted(1)
    assert worker.runs.forget(claim) is found


async def test_a_delivery_that_would_join_a_run_which_ends_meanwhile_is_decided_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await world.join()
    lost, late = Arrived(MESSAGE), Arrived(MESSAGE, redelivered=True)
    claim = await worker.claim(MESSAGE, delivery=lost)
    lost.is_alive = False
    too_late = asyncio.Event()

    def adopt(*_: object) -> bool:
        too_late.set()
        return False

    monkeypatch.setattr(worker.runs, "adopt", adopt)
    arriving = asyncio.create_task(worker.arrive(MESSAGE, delivery=late))
    await too_late.wait()
    await worker.record(claim, Succeeded())
    worker.runs.forget(claim)

    met = await arriving

    assert isinstance(met.decision, Duplicate)


async def test_a_delivery_of_a_run_elsewhere_leaves_its_body(world: World) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE)

    mets = [await other.arrive(MESSAGE) for _ in range(2)]

    assert all(isinstance(met.decision, GivenBody) for met in mets)
    row = await world.row(TASK)
    assert row == replace(claim.row, has_body=True)
    assert said(await world.stored(TASK)) == said(MESSAGE)
    assert await worker.record(claim, Succeeded())
    assert await world.stored(TASK) is None


async def test_a_task_of_a_dead_worker_is_taken_over_in_the_lane_and_charged(world: World) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE)
    await world.kill(worker)

    waiting = await other.arrive(MESSAGE)
    taken = await other.claim(MESSAGE, lane=Lane.HELD)

    assert isinstance(waiting.decision, NeedsLane)
    assert (taken.attempt, taken.epoch, taken.row.worker) == (2, 2, other.id)
    assert taken.may_be_repeat
    assert await world.attempts(TASK) == [Attempt(1, 1, "crashed", worker.id)]
    assert not await worker.record(claim, Succeeded("late"))
    assert await world.row(TASK) == taken.row


async def test_a_worker_that_left_is_dead_at_once(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.claim(MESSAGE)
    await worker.membership.leave()

    assert (await other.claim(MESSAGE, lane=Lane.HELD)).epoch == 2


async def test_crashes_end_at_the_policy(world: World) -> None:
    for _ in range(MAX_ATTEMPTS):
        worker = await world.join()
        await worker.claim(MESSAGE, lane=Lane.HELD)
        await world.kill(worker)
    last = await world.join()

    met = await last.arrive(MESSAGE, lane=Lane.HELD)

    row = await world.row(TASK)
    assert isinstance(met.decision, Refused)
    assert (row.state, row.reason, row.attempt) == (TaskState.DEAD, Reason.CRASHED, MAX_ATTEMPTS)
    assert [attempt.outcome for attempt in await world.attempts(TASK)] == ["crashed"] * MAX_ATTEMPTS


async def test_a_takeover_by_a_worker_that_can_not_run_it_leaves_the_body_to_the_rescuer(
    world: World,
) -> None:
    worker, other = await world.join(), await world.join()
    await worker.claim(MESSAGE)
    await world.kill(worker)

    met = await other.arrive(MESSAGE, refusal=UNKNOWN)
    rescued = await other.rescues.rescue()

    assert isinstance(met.decision, GivenBody)
    assert rescued == 1
    assert (await world.row(TASK)).state is TaskState.RETRYING


# --- concurrency ---------------------------------------------------------------------


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "with a time limit"])
async def test_of_two_workers_that_get_the_same_message_one_runs_it(world: World, *, is_plain: bool) -> None:
    workers = [await world.join() for _ in range(4)]
    limit = None if is_plain else await world.now() + timedelta(hours=1)

    mets = await asyncio.gather(*(worker.arrive(replace(MESSAGE, not_after=limit)) for worker in workers))

    assert sorted(type(met.decision).__name__ for met in mets) == ["Claimed", *["GivenBody"] * 3]
    assert sum(len(worker.runs) for worker in workers) == 1


async def test_two_deliveries_of_one_message_at_one_worker_are_one_run(world: World) -> None:
    worker = await world.join()

    mets = await asyncio.gather(worker.arrive(MESSAGE), worker.arrive(MESSAGE))

    assert sorted(type(met.decision).__name__ for met in mets) == ["Claimed", "Duplicate"]


async def test_a_hundred_messages_of_every_kind_share_their_commits(world: World) -> None:
    worker = await world.join()
    await asyncio.gather(*(worker.finish(numbered(number), FAILED) for number in range(30)))

    claims = await asyncio.gather(
        *(worker.claim(replace(numbered(number), epoch=1 if number < 30 else 0)) for number in range(100))
    )
    outcomes: list[Outcome] = [Succeeded("1"), FAILED, Dead(Reason.GAVE_UP, FAILURE), Released()]
    recorded = await asyncio.gather(
        *(worker.record(claim, outcomes[number % 4]) for number, claim in enumerate(claims))
    )

    assert all(recorded)
    states = [(await world.row(numbered(number).task)).state for number in range(8)]
    assert states == [TaskState.SUCCEEDED, TaskState.RETRYING, TaskState.DEAD, TaskState.QUEUED] * 2


# --- outcomes ------------------------------------------------------------------------


async def test_a_success_keeps_its_result_and_owes_nothing(world: World) -> None:
    worker = await world.join()

    await worker.finish(MESSAGE, Succeeded('{"a": 1}'))

    row = await world.row(TASK)
    assert (row.state, row.attempt, row.epoch, row.reason) == (TaskState.SUCCEEDED, 1, 1, None)
    assert json.loads(await world.result(TASK) or "") == {"a": 1}
    assert (worker.owed, await world.owed_epochs(), await world.attempts(TASK)) == ([], [], [])


async def test_a_failure_owes_its_next_copy(world: World) -> None:
    worker = await world.join()

    await worker.finish(MESSAGE, FAILED)

    row = await world.row(TASK)
    assert (row.state, row.attempt, row.epoch, row.has_body) == (TaskState.RETRYING, 1, 1, True)
    assert said(await world.stored(TASK)) == said(MESSAGE)
    assert await world.attempts(TASK) == [Attempt(1, 1, "failed", worker.id)]
    (owed,) = worker.owed
    assert (owed.outgoing.kind, owed.outgoing.routing_key, owed.outgoing.body) == (
        Kind.COPY,
        "email",
        MESSAGE.body,
    )
    assert owed.outgoing.delay == timedelta(seconds=30)
    assert owed.outgoing.properties.headers == {
        "tenant-id": "t", "bw-task-id": "m-1", "bw-epoch": 1, "bw-attempt": 1,
    }  # fmt: skip
    assert await world.owed_epochs() == [1]


async def test_a_death_owes_its_letter(world: World) -> None:
    worker = await world.join()
    body = bytes(range(256))
    message = replace(MESSAGE, body=body)

    await worker.finish(message, Dead(Reason.GAVE_UP, FAILURE))

    row = await world.row(TASK)
    assert (row.state, row.reason) == (TaskState.DEAD, Reason.GAVE_UP)
    (letter,) = await world.letters()
    assert (letter.reason, letter.body, letter.task_key) == ("gave_up", body, row.key)
    (owed,) = worker.owed
    assert (owed.outgoing.kind, owed.outgoing.body) == (Kind.DEAD_LETTER, body)
    assert owed.outgoing.routing_key == "email.gave_up.email.send"
    assert await world.attempts(TASK) == [Attempt(1, 1, "gave_up", worker.id)]


async def test_a_release_is_not_charged(world: World) -> None:
    worker = await world.join()

    await worker.finish(MESSAGE, Released())
    again = await worker.claim(copy_of(await world.row(TASK)))

    assert (again.attempt, again.epoch, again.row.interruptions) == (1, 2, 1)
    assert await world.attempts(TASK) == [Attempt(1, 1, "released", worker.id)]


async def test_the_fiftieth_release_is_the_end(world: World) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await world.edit(TASK, interruptions=49)

    await worker.record(claim, Released())

    row = await world.row(TASK)
    assert (row.state, row.reason) == (TaskState.DEAD, Reason.INTERRUPTED)


@pytest.mark.parametrize("outcome", [FAILED, Released()], ids=["failed", "released"])
async def test_a_run_that_an_operator_cancelled_does_not_run_again(world: World, outcome: Outcome) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await world.edit(TASK, is_cancel_requested=True)

    await worker.record(claim, outcome)

    assert (await world.row(TASK)).state is TaskState.CANCELLED
    assert worker.owed == []


@pytest.mark.parametrize(
    ("outcome", "state", "result"),
    [(Succeeded("[1]"), "succeeded", [1]), (Dead(Reason.GAVE_UP, FAILURE), "dead", None)],
    ids=["succeeded", "dead"],
)
async def test_the_end_of_a_task_owes_the_reply_that_was_asked_for(
    world: World, outcome: Outcome, state: str, result: object
) -> None:
    worker = await world.join()

    await worker.finish(replace(MESSAGE, reply_to="answers"), outcome)

    (reply,) = [owed.outgoing for owed in worker.owed if owed.outgoing.kind is Kind.REPLY]
    answer = json.loads(reply.body)
    assert (reply.routing_key, reply.properties.correlation_id) == ("answers", "c-1")
    assert (answer["id"], answer["state"], answer["result"]) == ("m-1", state, result)


async def test_a_stranger_is_buried_and_its_letter_owed_unless_it_came_as_one(world: World) -> None:
    worker = await world.join()
    letters = [
        letter_of_stranger(
            Properties(type="x\0", headers={"a": b"\0"}),
            b"\0",
            queue="email",
            reason=Reason.MALFORMED,
            failure=FAILURE,
        )
        for _ in range(2)
    ]

    await worker.tasks.bury(letters[0])
    await worker.tasks.bury(letters[0])
    await worker.tasks.bury(letters[1], is_published=True)

    assert [letter.body for letter in await world.letters()] == [b"\0", b"\0"]
    assert len(worker.owed) == len(await world.owed_epochs()) == 1


# --- unknown commits and lost claims -------------------------------------------------


async def test_a_claim_whose_reply_was_lost_is_resumed_and_charged_once(world: World) -> None:
    worker = await world.join()
    worker.lose_reply()
    with pytest.raises(StoreUnavailableError):
        await worker.arrive(MESSAGE)

    met = await worker.arrive(MESSAGE)

    assert met.decision == Resumed(1, 1)
    assert met.claim is not None
    assert met.claim.may_be_repeat
    assert await worker.record(met.claim, Succeeded())


async def test_a_claim_whose_reply_was_lost_is_the_rescuers_once_another_got_the_message(
    world: World,
) -> None:
    worker, other = await world.join(), await world.join()
    worker.lose_reply()
    with pytest.raises(StoreUnavailableError):
        await worker.arrive(MESSAGE)

    met = await other.arrive(MESSAGE)
    early = await worker.rescues.release_forgotten(worker.runs.keys())
    await world.pass_time(timedelta(minutes=1))
    released = await worker.rescues.release_forgotten(worker.runs.keys())

    assert isinstance(met.decision, GivenBody)
    assert (early, released) == (0, 1)
    row = await world.row(TASK)
    assert (row.state, row.attempt, row.interruptions) == (TaskState.QUEUED, 0, 1)
    assert (await other.claim(copy_of(row))).attempt == 1


@pytest.mark.parametrize(
    "outcome",
    [Succeeded("1"), FAILED, Dead(Reason.GAVE_UP, FAILURE), Released(), Cancelled()],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_a_record_whose_reply_was_lost_is_found_recorded(world: World, outcome: Outcome) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    worker.lose_reply()
    with pytest.raises(StoreUnavailableError):
        await worker.tasks.record(claim, outcome)
    row, attempts = await world.row(TASK), await world.attempts(TASK)
    owed = await world.owed_epochs()

    assert await worker.record(claim, outcome)

    assert (await world.row(TASK), await world.attempts(TASK)) == (row, attempts)
    assert await world.owed_epochs() == owed


@pytest.mark.parametrize(
    "outcome",
    [Succeeded("1"), FAILED, Dead(Reason.GAVE_UP, FAILURE), Released(), Cancelled()],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_a_record_after_a_takeover_writes_nothing(world: World, outcome: Outcome) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE)
    await world.kill(worker)
    await other.claim(MESSAGE, lane=Lane.HELD)
    row, attempts = await world.row(TASK), await world.attempts(TASK)

    assert not await worker.record(claim, outcome)

    assert (await world.row(TASK), await world.attempts(TASK)) == (row, attempts)
    assert (worker.owed, await world.owed_epochs()) == ([], [])


@pytest.mark.parametrize("second", [Succeeded("1"), FAILED], ids=["succeeded", "failed"])
async def test_an_outcome_after_another_of_the_same_claim_changes_nothing(
    world: World, second: Outcome
) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await worker.record(claim, Released())
    row = await world.row(TASK)

    assert await worker.record(claim, second) == second

    assert await world.row(TASK) == row
    assert len(worker.owed) == 1


@pytest.mark.parametrize(
    "second",
    [FAILED, Dead(Reason.GAVE_UP, FAILURE), Released(), Cancelled()],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_an_outcome_after_a_success_of_the_same_claim_is_answered_with_the_success(
    world: World, second: Outcome
) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await worker.record(claim, Succeeded("1"))
    row = await world.row(TASK)

    assert await worker.record(claim, second) == Succeeded()

    assert await world.row(TASK) == row
    assert (await world.result(TASK), await world.attempts(TASK), worker.owed) == ("1", [], [])


# --- what only a real database can do --------------------------------------------------

UNSTORABLE = Postponed(timedelta(0), Failure("ValueError", "a \0 that Postgres refuses"))


async def test_one_outcome_that_can_not_be_stored_does_not_fail_its_neighbours(
    postgres: PostgresWorld,
) -> None:
    worker = await postgres.join()
    claims = [await worker.claim(numbered(number)) for number in range(5)]

    answers = await asyncio.gather(
        *(worker.tasks.record(claim, UNSTORABLE if claim is claims[2] else FAILED) for claim in claims),
        return_exceptions=True,
    )

    assert isinstance(answers[2], StoreDataError)
    assert [answer for answer in answers if answer is FAILED] == [FAILED] * 4
    assert (await postgres.row(claims[2].row.id)).state is TaskState.RUNNING


async def test_one_success_that_can_not_be_stored_does_not_fail_its_neighbours(
    postgres: PostgresWorld,
) -> None:
    worker = await postgres.join()
    claims = [await worker.claim(numbered(number)) for number in range(3)]

    answers = await asyncio.gather(
        *(
            worker.tasks.record(claim, Succeeded("no JSON" if claim is claims[1] else "1"))
            for claim in claims
        ),
        return_exceptions=True,
    )

    assert [type(answer) for answer in answers] == [Succeeded, StoreDataError, Succeeded]


async def test_one_arrival_that_can_not_be_stored_does_not_fail_its_neighbours(
    postgres: PostgresWorld,
) -> None:
    """Nor may a neighbour's claim, committed before it in the same batch, be taken for a run that goes on."""
    worker = await postgres.join()
    bad = Refusal(Reason.MALFORMED, Failure("ContractError", "fine"))
    poisonous = replace(numbered(9), task=TaskId("email", "a \0 name", "m-9"))

    answers = await asyncio.gather(
        *(worker.arrive(numbered(number)) for number in range(3)),
        worker.arrive(poisonous, refusal=bad),
        return_exceptions=True,
    )

    assert isinstance(answers[3], StoreDataError)
    for answer in answers[:3]:
        assert not isinstance(answer, BaseException)
        assert answer.claim is not None, answer.decision
    assert len(worker.runs) == 3


async def test_claims_of_a_batch_whose_second_commit_failed_are_found_again(postgres: PostgresWorld) -> None:
    worker = await postgres.join()
    await worker.finish(numbered(9), FAILED)
    worker.lose_reply(2)

    answers = await asyncio.gather(
        worker.arrive(numbered(1)), worker.arrive(replace(numbered(9), epoch=1)), return_exceptions=True
    )
    again = await worker.arrive(numbered(1))

    assert [type(answer) for answer in answers] == [StoreUnavailableError] * 2
    assert isinstance(again.decision, Resumed)
    assert again.claim is not None


async def test_a_row_that_another_transaction_holds_is_decided_when_it_lets_go(
    postgres: PostgresWorld,
) -> None:
    worker = await postgres.join()
    await worker.finish(MESSAGE, FAILED)
    message = copy_of(await postgres.row(TASK))

    async with asyncio.TaskGroup() as tasks, postgres.admin.transaction() as connection:
        await connection.exec_driver_sql("SELECT 1 FROM broker_worker.tasks FOR UPDATE")
        held = tasks.create_task(worker.arrive(message))
        neighbour = await worker.claim(numbered(2))
        was_done = held.done()

    assert not was_done
    assert neighbour.attempt == 1
    assert held.result().decision == Claimed(2, 2)


async def test_a_success_whose_row_another_transaction_holds_holds_up_no_other_for_long(
    postgres: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedConnection, "settings", {**LIMITS, "lock_timeout": "20"})
    worker = await postgres.join()
    held, *free = [await worker.claim(numbered(n)) for n in range(4)]

    async with asyncio.TaskGroup() as tasks, postgres.admin.transaction() as connection:
        await connection.exec_driver_sql(
            f"SELECT 1 FROM broker_worker.tasks WHERE key = {held.key} FOR UPDATE"
        )
        late = tasks.create_task(worker.tasks.record(held, Succeeded("1")))
        await asyncio.gather(*(worker.tasks.record(claim, Succeeded("2")) for claim in free))
        was_done = late.done()

    assert not was_done
    assert late.result() == Succeeded("1")
    assert await postgres.result(held.row.id) == "1"


async def test_a_value_postgres_can_not_hold_as_text_is_replaced_and_the_task_runs(
    postgres: PostgresWorld,
) -> None:
    worker = await postgres.join()
    message = replace(MESSAGE, correlation_id="a\0b\ud800", app_id="\0", headers={"h": "\0\udfff"})

    claim = await worker.claim(message)
    await worker.record(claim, FAILED)

    assert (await postgres.row(TASK)).correlation_id is not None
    stored = await postgres.stored(TASK)
    assert stored is not None
    assert stored.headers == {"h": "\0\udfff"}

"""The cancel of a running task, the same in memory and in Postgres."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker_worker.message import Message, TaskId
from broker_worker.outcome import Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.task import CancelledBefore, Lane, TaskState
from tests.support.attempts import cancel, requests_of
from tests.support.worlds import World

TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(TASK, b'{"to": 1}')
FAILURE = Failure("ValueError", "no")


async def test_only_the_runs_whose_cancel_was_asked_for_are_found(world: World) -> None:
    worker = await world.join()
    messages = [replace(MESSAGE, task=TASK._replace(id=f"m-{number}")) for number in range(3)]
    claims = [await worker.claim(message) for message in messages]
    await cancel(world, messages[1].task)
    await cancel(world, messages[2].task)

    found = await requests_of(world, worker).requested([(claim.key, claim.epoch) for claim in claims[:2]])

    assert found == {(claims[1].key, claims[1].epoch)}


async def test_a_run_that_is_not_this_workers_any_more_is_not_found(world: World) -> None:
    worker, other = await world.join(), await world.join()
    lost = await worker.claim(MESSAGE, lane=Lane.HELD)
    await world.kill(worker)
    kept = await other.claim(MESSAGE, lane=Lane.HELD)
    await cancel(world, TASK)

    found = [
        await requests_of(world, each).requested([(lost.key, lost.epoch), (kept.key, kept.epoch)])
        for each in (worker, other)
    ]

    assert found == [set(), {(kept.key, kept.epoch)}]


async def test_a_run_that_has_ended_is_not_found(world: World) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await cancel(world, TASK)
    await worker.record(claim, Released())

    assert await requests_of(world, worker).requested([(claim.key, claim.epoch)]) == set()


async def test_without_runs_nothing_is_found(world: World) -> None:
    assert await requests_of(world, await world.join()).requested([]) == set()


async def test_a_waiting_task_ends_at_once_and_is_not_run_by_the_copy_on_its_way(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, Postponed(timedelta(0), FAILURE))

    await cancel(world, TASK)

    assert (await world.row(TASK)).state is TaskState.CANCELLED
    assert (await worker.arrive(replace(MESSAGE, epoch=1))).claim is None


@pytest.mark.parametrize(
    "outcome",
    [Dead(Reason.GAVE_UP, FAILURE), Postponed(timedelta(0), FAILURE), Released()],
    ids=["dead", "postponed", "released"],
)
async def test_a_run_that_does_not_succeed_ends_cancelled_without_a_dead_letter(
    world: World, outcome: Outcome
) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await cancel(world, TASK)

    await worker.record(claim, outcome)

    assert (await world.row(TASK)).state is TaskState.CANCELLED
    assert [attempt.outcome for attempt in await world.attempts(TASK)] == ["cancelled"]
    assert (await world.letters(), await world.owed_epochs()) == ([], [])


async def test_a_run_that_succeeds_in_spite_of_it_has_succeeded(world: World) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await cancel(world, TASK)

    await worker.record(claim, Succeeded("1"))

    assert ((await world.row(TASK)).state, await world.result(TASK)) == (TaskState.SUCCEEDED, "1")


async def test_a_run_of_a_dead_worker_is_not_taken_over(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.claim(MESSAGE, lane=Lane.HELD)
    await cancel(world, TASK)
    await world.kill(worker)

    met = await other.arrive(MESSAGE, lane=Lane.HELD)

    assert isinstance(met.decision, CancelledBefore)
    assert (await world.row(TASK)).state is TaskState.CANCELLED


async def test_a_task_that_has_ended_stays_as_it_is(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, Succeeded("1"))

    await cancel(world, TASK)

    row = await world.row(TASK)
    assert (row.state, row.is_cancel_requested) == (TaskState.SUCCEEDED, False)


async def test_whoever_wanted_an_answer_is_told_that_the_task_was_cancelled(world: World) -> None:
    worker = await world.join()
    await worker.finish(replace(MESSAGE, reply_to="answers"), Postponed(timedelta(hours=1), FAILURE))

    await cancel(world, TASK)

    [owed] = await worker.outbox.take(10)
    assert owed.outgoing.routing_key == "answers"
    assert b'"cancelled"' in owed.outgoing.body

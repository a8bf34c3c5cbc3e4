"""The deadline of all attempts together, the same in memory and in Postgres."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker_worker.message import Message, TaskId
from broker_worker.outcome import Failure, Outcome, Postponed, Reason, Released
from broker_worker.task import Claimed, Lane, Refused, Task, TaskState
from tests.support.worlds import World

TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(TASK, b"{}")
HOUR = timedelta(hours=1)
FAILED = Postponed(timedelta(seconds=30), Failure("ValueError", "no"))


def copy_of(row: Task) -> Message:
    return replace(MESSAGE, epoch=row.epoch)


@pytest.mark.parametrize("outcome", [FAILED, Released()], ids=["failed", "released"])
async def test_the_first_start_fixes_the_deadline_for_all_attempts(world: World, outcome: Outcome) -> None:
    worker = await world.join()
    now = await world.now()

    claim = await worker.claim(MESSAGE, deadline=HOUR)
    await worker.record(claim, outcome)
    again = await worker.claim(copy_of(await world.row(TASK)), deadline=2 * HOUR)

    first = claim.row.deadline_at
    assert first is not None
    assert now + HOUR <= first <= await world.now() + HOUR
    assert again.row.deadline_at == first
    assert (await world.row(TASK)).deadline_at == first


async def test_a_takeover_keeps_the_deadline(world: World) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE, deadline=HOUR)
    await world.kill(worker)

    taken = await other.claim(MESSAGE, deadline=2 * HOUR, lane=Lane.HELD)

    assert claim.row.deadline_at is not None
    assert taken.row.deadline_at == claim.row.deadline_at


@pytest.mark.parametrize("is_taken_over", [False, True])
async def test_what_arrives_past_its_deadline_is_dead_with_a_letter(
    world: World, *, is_taken_over: bool
) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE, deadline=HOUR)
    if is_taken_over:
        await world.kill(worker)
    else:
        await worker.record(claim, FAILED)
    await world.pass_time(HOUR + timedelta(seconds=1))

    met = await other.arrive(copy_of(await world.row(TASK)), deadline=HOUR, lane=Lane.HELD)

    row = await world.row(TASK)
    assert isinstance(met.decision, Refused)
    assert (row.state, row.reason) == (TaskState.DEAD, Reason.TIMEOUT)
    assert [letter.reason for letter in await world.letters()] == ["timeout"]


async def test_a_task_without_a_deadline_has_none(world: World) -> None:
    worker = await world.join()

    met = await worker.arrive(MESSAGE)

    assert isinstance(met.decision, Claimed)
    assert (await world.row(TASK)).deadline_at is None

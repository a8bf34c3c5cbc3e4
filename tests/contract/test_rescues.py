"""Tasks that nobody holds, the same in memory and in Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from broker_worker.message import Message, TaskId
from broker_worker.outcome import Failure, Postponed, Reason, Succeeded
from broker_worker.outgoing import Kind
from broker_worker.task import Lane, TaskState
from tests.support.worlds import MAX_ATTEMPTS, Attempt, PostgresWorld, Worker, World

TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(TASK, b'{"to": 1}')
FAILURE = Failure("ValueError", "no")
FAILED = Postponed(timedelta(0), FAILURE)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
ROOM = {"email": 60.0}


def numbered(number: int) -> Message:
    return replace(MESSAGE, task=TASK._replace(id=f"m-{number}"))


async def abandoned(world: World, message: Message = MESSAGE) -> tuple[Worker, Worker]:
    """A task with its body in the database, under a dead worker; and a live one."""
    worker, other = await world.join(), await world.join()
    await worker.claim(message, lane=Lane.HELD)
    await other.arrive(message)
    await world.kill(worker)
    return worker, other


# --- under dead workers ------------------------------------------------------------


async def test_a_task_of_a_dead_worker_is_sent_again_charged_as_a_crash(world: World) -> None:
    worker, other = await abandoned(world)

    rescued = [await other.rescues.rescue() for _ in range(2)]

    row = await world.row(TASK)
    assert rescued == [1, 0]
    assert (row.state, row.attempt, row.epoch, row.reason) == (TaskState.RETRYING, 1, 2, Reason.CRASHED)
    assert await world.attempts(TASK) == [Attempt(1, 1, "crashed", worker.id)]
    (owed,) = other.owed
    assert (owed.outgoing.kind, owed.outgoing.body) == (Kind.COPY, MESSAGE.body)
    assert owed.outgoing.properties.headers["bw-epoch"] == 2
    claim = await other.claim(replace(MESSAGE, epoch=2), lane=Lane.HELD)
    assert claim.attempt == 2


async def test_a_task_of_a_live_worker_is_left_alone(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.claim(MESSAGE)
    await other.arrive(MESSAGE)

    assert await other.rescues.rescue() == 0
    assert (await world.row(TASK)).state is TaskState.RUNNING


async def test_a_task_without_a_body_is_left_to_its_message(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.claim(MESSAGE)
    await world.kill(worker)

    assert await other.rescues.rescue() == 0


async def test_the_last_crash_is_death_with_the_body_in_the_letter(world: World) -> None:
    _, other = await abandoned(world)
    await world.edit(TASK, attempt=MAX_ATTEMPTS)

    await other.rescues.rescue()

    row = await world.row(TASK)
    assert (row.state, row.reason) == (TaskState.DEAD, Reason.CRASHED)
    assert [(letter.reason, letter.body) for letter in await world.letters()] == [("crashed", MESSAGE.body)]
    assert await world.stored(TASK) is None


async def test_a_cancelled_task_of_a_dead_worker_ends(world: World) -> None:
    _, other = await abandoned(world)
    await world.edit(TASK, is_cancel_requested=True)

    await other.rescues.rescue()

    assert (await world.row(TASK)).state is TaskState.CANCELLED
    assert other.owed == []


async def test_two_rescuers_share_and_neither_waits(world: World) -> None:
    worker, first, second = [await world.join() for _ in range(3)]
    for number in range(5):
        await worker.claim(numbered(number))
        await first.arrive(numbered(number))
    await world.kill(worker)

    rescued = await asyncio.gather(first.rescues.rescue(), second.rescues.rescue())

    assert sum(rescued) == 5
    assert sorted(await world.owed_epochs()) == [2] * 5


async def test_a_turn_is_bounded(world: World) -> None:
    worker, other = await world.join(), await world.join()
    messages = [numbered(number) for number in range(201)]
    await asyncio.gather(*(worker.claim(message) for message in messages))
    await asyncio.gather(*(other.arrive(message) for message in messages))
    await world.kill(worker)

    assert [await other.rescues.rescue() for _ in range(3)] == [200, 1, 0]


# --- overdue -------------------------------------------------------------------------


async def waiting(world: World) -> Worker:
    """A task whose copy was confirmed by the broker, and never comes."""
    worker = await world.join()
    await worker.finish(MESSAGE, FAILED)
    await worker.outbox.delete([owed.id for owed in worker.owed])
    worker.owed.clear()
    return worker


async def test_a_copy_that_is_overdue_is_sent_again_where_a_consumer_had_room(world: World) -> None:
    worker = await waiting(world)
    await world.pass_time(10 * MINUTE + SECOND)
    await worker.workers.beat(ROOM)

    sent = [await worker.rescues.reemit_overdue() for _ in range(2)]

    row = await world.row(TASK)
    assert sent == [1, 0]
    assert (row.state, row.attempt, row.epoch, row.reemissions) == (TaskState.RETRYING, 1, 2, 1)
    assert [owed.outgoing.properties.headers["bw-epoch"] for owed in worker.owed] == [2]


@pytest.mark.parametrize(
    ("waited", "idle"),
    [(9 * MINUTE, ROOM), (HOUR, {"email": 59.0}), (HOUR, {"sms": 99.0}), (5 * HOUR, {})],
    ids=["not yet", "no room for long", "room elsewhere", "nobody"],
)
async def test_during_a_backlog_nothing_is_sent_again(
    world: World, waited: timedelta, idle: dict[str, float]
) -> None:
    worker = await waiting(world)
    await world.pass_time(waited)
    await worker.workers.beat(idle)

    assert await worker.rescues.reemit_overdue() == 0


async def test_the_room_of_a_worker_that_no_longer_beats_says_nothing(world: World) -> None:
    worker, other = await waiting(world), await world.join()
    await world.pass_time(HOUR)
    await other.workers.beat(ROOM)
    await world.pass_time(20 * SECOND)
    await worker.workers.beat({})

    assert await worker.rescues.reemit_overdue() == 0


async def test_what_is_hours_overdue_is_sent_again_whatever_the_consumers_say(world: World) -> None:
    worker = await waiting(world)
    await world.pass_time(6 * HOUR + SECOND)

    assert await worker.rescues.reemit_overdue() == 1


async def test_each_time_it_is_waited_for_twice_as_long(world: World) -> None:
    worker = await waiting(world)
    intervals = []
    for _ in range(3):
        waited = timedelta(0)
        await world.pass_time(SECOND)
        while True:
            await worker.workers.beat(ROOM)
            if await worker.rescues.reemit_overdue():
                break
            await world.pass_time(2 * MINUTE)
            waited += 2 * MINUTE
        intervals.append(waited // MINUTE)
        await worker.outbox.delete([owed.id for owed in worker.owed])

    assert intervals == [10, 20, 40]


async def test_what_still_lies_in_the_outbox_is_not_overdue(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, FAILED)
    await world.pass_time(24 * HOUR)
    await worker.workers.beat(ROOM)

    assert await worker.rescues.reemit_overdue() == 0


async def test_the_time_it_has_to_wait_does_not_count(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, Postponed(HOUR, FAILURE))
    await worker.outbox.delete([owed.id for owed in worker.owed])
    await world.pass_time(HOUR + 9 * MINUTE)
    await worker.workers.beat(ROOM)

    early = await worker.rescues.reemit_overdue()
    await world.pass_time(2 * MINUTE)
    await worker.workers.beat(ROOM)

    assert (early, await worker.rescues.reemit_overdue()) == (0, 1)


async def test_a_task_that_runs_is_not_overdue(world: World) -> None:
    worker = await waiting(world)
    await worker.claim(replace(MESSAGE, epoch=1))
    await world.pass_time(24 * HOUR)
    await worker.workers.beat(ROOM)

    assert await worker.rescues.reemit_overdue() == 0


async def test_a_copy_that_comes_after_it_was_sent_again_is_older(world: World) -> None:
    worker = await waiting(world)
    await world.pass_time(7 * HOUR)
    await worker.rescues.reemit_overdue()

    old = await worker.arrive(replace(MESSAGE, epoch=1))
    new = await worker.arrive(replace(MESSAGE, epoch=2))

    assert (old.claim, new.claim is not None) == (None, True)


# --- forgotten -------------------------------------------------------------------------


async def forgotten(world: World) -> Worker:
    """A run under a worker's own id, with its body, that it does not remember."""
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE)
    await other.arrive(MESSAGE)
    worker.runs.forget(claim)
    return worker


async def test_what_a_worker_forgot_it_runs_is_released_uncharged(world: World) -> None:
    worker = await forgotten(world)
    await world.pass_time(46 * SECOND)

    released = [await worker.rescues.release_forgotten([]) for _ in range(2)]

    row = await world.row(TASK)
    assert released == [1, 0]
    assert (row.state, row.attempt, row.interruptions) == (TaskState.QUEUED, 0, 1)
    assert len(worker.owed) == 1


async def test_a_claim_may_be_on_its_way_to_memory_for_a_while(world: World) -> None:
    worker = await forgotten(world)
    await world.pass_time(30 * SECOND)

    assert await worker.rescues.release_forgotten([]) == 0


async def test_a_run_that_was_resumed_meanwhile_is_not_forgotten(world: World) -> None:
    worker = await forgotten(world)
    known = worker.runs.keys()  # asked before the database answers
    await world.pass_time(HOUR)

    await worker.arrive(MESSAGE)

    assert await worker.rescues.release_forgotten(known) == 0


async def test_what_is_known_is_not_forgotten(world: World) -> None:
    worker = await forgotten(world)
    key = (await world.row(TASK)).key
    await world.pass_time(HOUR)

    assert await worker.rescues.release_forgotten([key]) == 0


async def test_only_own_runs_are_released(world: World) -> None:
    await forgotten(world)
    other = await world.join()
    await world.pass_time(HOUR)

    assert await other.rescues.release_forgotten([]) == 0


# --- lost --------------------------------------------------------------------------------


async def test_a_task_whose_worker_died_hours_ago_and_whose_message_never_came_is_lost(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.claim(MESSAGE)
    await world.kill(worker)
    early = await other.rescues.bury_lost()
    await world.pass_time(6 * HOUR + SECOND)

    buried = [await other.rescues.bury_lost() for _ in range(2)]

    row = await world.row(TASK)
    assert (early, buried) == (0, [1, 0])
    assert (row.state, row.reason) == (TaskState.DEAD, Reason.LOST)
    (letter,) = await world.letters()
    assert (letter.reason, letter.body, letter.task_key) == ("lost", b"", row.key)
    assert await world.attempts(TASK) == [Attempt(1, 1, "crashed", worker.id)]
    assert [owed.outgoing.kind for owed in other.owed] == [Kind.DEAD_LETTER]


async def test_what_others_run_or_hold_or_ended_is_not_lost(world: World) -> None:
    gone, alive = await world.join(), await world.join()
    await gone.finish(numbered(1), Succeeded())
    await gone.finish(numbered(2), FAILED)
    await gone.claim(numbered(3))
    await alive.arrive(numbered(3))
    await alive.claim(numbered(4))
    await world.kill(gone)
    await world.pass_time(7 * HOUR)

    assert await alive.rescues.bury_lost() == 0


async def test_with_nobody_dead_nothing_is_lost(world: World) -> None:
    worker = await world.join()

    assert await worker.rescues.bury_lost() == 0


async def test_more_than_a_turns_worth_is_buried_over_turns(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await asyncio.gather(*(worker.claim(numbered(number)) for number in range(201)))
    await world.kill(worker)
    await world.pass_time(7 * HOUR)

    assert [await other.rescues.bury_lost() for _ in range(3)] == [200, 1, 0]


# --- what only a real database can do ------------------------------------------------------


async def test_a_row_that_another_transaction_holds_is_left_to_it(postgres: PostgresWorld) -> None:
    _, other = await abandoned(postgres)

    async with postgres.admin.transaction() as connection:
        await connection.exec_driver_sql("SELECT 1 FROM broker_worker.tasks FOR UPDATE")
        held = await other.rescues.rescue()

    assert (held, await other.rescues.rescue()) == (0, 1)

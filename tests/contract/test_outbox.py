"""What is owed to the world, the same in memory and in Postgres."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from broker_worker.failure import Refusal
from broker_worker.message import Message, TaskId
from broker_worker.outcome import Dead, Failure, Postponed, Reason, Released, Succeeded
from broker_worker.outgoing import LONGEST_RUNG, Kind
from tests.support.worlds import PostgresWorld, World

TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(
    TASK, b"\xff\0", content_type="application/octet-stream", headers={"tenant-id": "t", "raw": b"\0"},
    correlation_id="c-1", app_id="a",
)  # fmt: skip
FAILURE = Failure("ValueError", "no", None, "f-1")
NOW_AGAIN = Postponed(timedelta(0), FAILURE)
PROMPTNESS = timedelta(minutes=2)
MOMENT = timedelta(seconds=1)


def numbered(number: int) -> Message:
    return replace(MESSAGE, task=TASK._replace(id=f"m-{number}"))


async def test_what_a_worker_has_just_written_is_its_own_for_two_minutes(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)

    early = await other.outbox.take(9)
    await world.pass_time(PROMPTNESS - MOMENT * 10)
    still_early = await other.outbox.take(9)
    await world.pass_time(MOMENT * 11)
    late = await other.outbox.take(9)

    assert (early, still_early) == ([], [])
    assert [owed.id for owed in late] == [owed.id for owed in worker.owed]


async def test_what_is_found_in_the_database_is_what_was_in_memory(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    await worker.finish(replace(numbered(2), reply_to="answers"), Succeeded('{"a": 1}'))
    await world.pass_time(PROMPTNESS + MOMENT)

    found = await other.outbox.take(9)

    assert sorted(found, key=lambda owed: owed.id) == sorted(worker.owed, key=lambda owed: owed.id)


async def test_a_letter_found_in_the_database_is_the_same_letter(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, Dead(Reason.GAVE_UP, FAILURE))
    await world.pass_time(PROMPTNESS + MOMENT)

    (found,) = await other.outbox.take(9)

    (written,) = worker.owed
    found_headers, written_headers = (
        {name: value for name, value in owed.outgoing.properties.headers.items() if name != "bw-failed-at"}
        for owed in (found, written)
    )
    assert found_headers == written_headers
    assert found.outgoing.body == MESSAGE.body
    assert found.outgoing.routing_key == written.outgoing.routing_key


async def test_a_row_that_was_taken_belongs_to_its_taker_for_two_minutes(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    await world.pass_time(PROMPTNESS + MOMENT)

    taken = await other.outbox.take(9)
    again = await worker.outbox.take(9)
    await world.pass_time(PROMPTNESS + MOMENT)
    third = await worker.outbox.take(9)

    assert (len(taken), len(again), len(third)) == (1, 0, 1)


async def test_two_relays_never_take_the_same_row(world: World) -> None:
    workers = [await world.join() for _ in range(3)]
    await asyncio.gather(*(workers[0].finish(numbered(number), NOW_AGAIN) for number in range(30)))
    await world.pass_time(PROMPTNESS + MOMENT)

    taken = await asyncio.gather(*(worker.outbox.take(20) for worker in workers))

    ids = [owed.id for part in taken for owed in part]
    assert len(ids) == len(set(ids))


async def test_no_more_are_taken_than_there_is_room_for(world: World) -> None:
    worker = await world.join()
    for number in range(5):
        await worker.finish(numbered(number), NOW_AGAIN)
    await world.pass_time(PROMPTNESS + MOMENT)

    taken = [await worker.outbox.take(2) for _ in range(4)]

    assert [len(part) for part in taken] == [2, 2, 1, 0]


async def test_rows_of_a_dead_worker_are_taken_at_once(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    await world.kill(worker)

    (taken,) = await other.outbox.take(9)

    assert taken.outgoing.routing_key == "email"
    assert await other.outbox.take(9) == []


async def test_what_was_deleted_is_gone(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)

    await worker.outbox.delete([owed.id for owed in worker.owed])
    await worker.outbox.delete([owed.id for owed in worker.owed])
    await world.pass_time(PROMPTNESS + MOMENT)

    assert await worker.outbox.take(9) == []
    assert await world.owed_epochs() == []


async def test_what_was_put_back_comes_later_and_later_to_any_relay(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    ids = [owed.id for owed in worker.owed]

    for expected in (1, 2, 4, 8):
        began = time.monotonic()
        await worker.outbox.put_back(ids)
        pause = 0
        while not await other.outbox.take(9):
            await world.pass_time(MOMENT)
            pause += 1
        took = time.monotonic() - began  # which passed as well, in a real database
        assert expected - 1 - took <= pause <= expected


async def test_what_was_not_even_sent_comes_a_second_later_however_often(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    ids = [owed.id for owed in worker.owed]

    for _ in range(5):
        began = time.monotonic()
        await worker.outbox.return_unsent(ids)
        early = await other.outbox.take(9)
        took = timedelta(seconds=time.monotonic() - began)  # a second, on a machine that stood still
        await world.pass_time(MOMENT)

        assert early == [] or took >= MOMENT
        assert [owed.id for owed in early or await other.outbox.take(9)] == ids


async def test_a_row_that_is_put_back_for_ever_still_comes_every_five_minutes(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    ids = [owed.id for owed in worker.owed]
    for _ in range(40):
        await worker.outbox.put_back(ids)

    early = await worker.outbox.take(9)
    await world.pass_time(timedelta(minutes=5) + MOMENT)
    late = await worker.outbox.take(9)

    assert (len(early), len(late)) == (0, 1)


async def test_a_delay_that_a_rung_can_hold_is_published_with_what_is_left_of_it(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, Postponed(timedelta(minutes=10), FAILURE))
    await world.pass_time(timedelta(minutes=4))

    (found,) = await other.outbox.take(9)

    assert worker.owed[0].outgoing.delay == timedelta(minutes=10)
    assert timedelta(minutes=5) < found.outgoing.delay <= timedelta(minutes=6)


@pytest.mark.parametrize(
    "delay",
    [LONGEST_RUNG + MOMENT, timedelta(days=30), timedelta(days=3650)],
    ids=["over", "month", "decade"],
)
async def test_a_longer_delay_waits_in_the_database_until_it_is_over(world: World, delay: timedelta) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, Postponed(delay, FAILURE))

    early = await worker.outbox.take(9)
    await world.kill(worker)
    other = await world.join()
    held = await other.outbox.take(9)
    await world.pass_time(delay + MOMENT)
    (due,) = await other.outbox.take(9)

    assert (worker.owed, early, held) == ([], [], [])
    assert due.outgoing.delay == timedelta(0)
    assert due.outgoing.body == MESSAGE.body


async def test_the_longest_rung_is_not_held(world: World) -> None:
    worker = await world.join()

    await worker.finish(MESSAGE, Postponed(LONGEST_RUNG, FAILURE))

    assert [owed.outgoing.delay for owed in worker.owed] == [LONGEST_RUNG]


async def test_a_copy_of_a_task_that_moved_on_is_dropped_and_not_sent(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    await other.claim(replace(MESSAGE, epoch=1))
    await world.pass_time(PROMPTNESS + MOMENT)

    taken = await other.outbox.take(9)

    assert taken == []
    assert await world.owed_epochs() == []


async def test_a_copy_of_a_finished_task_is_dropped(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, Released())
    again = await worker.claim(replace(MESSAGE, epoch=1))
    await worker.record(again, Succeeded())
    await world.pass_time(PROMPTNESS + MOMENT)

    assert await worker.outbox.take(9) == []


async def test_only_the_newest_copy_of_a_task_is_sent(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    refusal = Refusal(Reason.UNKNOWN_TASK, FAILURE)
    await worker.arrive(replace(MESSAGE, epoch=1), refusal=refusal)
    await world.pass_time(PROMPTNESS + MOMENT)

    taken = await worker.outbox.take(9)

    assert [owed.outgoing.properties.headers["bw-epoch"] for owed in taken] == [2]
    assert [owed.outgoing.kind for owed in taken] == [Kind.COPY]


async def test_deleting_and_putting_back_nothing_is_fine(world: World) -> None:
    worker = await world.join()

    await worker.outbox.delete([])
    await worker.outbox.put_back([])

    assert await worker.outbox.take(9) == []


async def test_a_row_that_was_deleted_meanwhile_is_not_put_back(world: World) -> None:
    worker = await world.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    ids = [owed.id for owed in worker.owed]
    await worker.outbox.delete(ids)

    await worker.outbox.put_back(ids)

    assert await world.owed_epochs() == []


async def test_a_row_that_another_relay_is_about_to_take_is_left_to_it(postgres: PostgresWorld) -> None:
    worker = await postgres.join()
    await worker.finish(MESSAGE, NOW_AGAIN)
    await postgres.pass_time(PROMPTNESS + MOMENT)

    async with postgres.admin.transaction() as connection:
        await connection.exec_driver_sql("SELECT 1 FROM broker_worker.outbox FOR UPDATE")
        async with asyncio.timeout(5):
            held = await worker.outbox.take(9)

    assert held == []
    assert len(await worker.outbox.take(9)) == 1

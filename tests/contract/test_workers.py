"""Beats and deaths, the same in memory and in Postgres."""

from __future__ import annotations

import asyncio

import pytest

from broker_worker.errors import DeclaredDeadError
from broker_worker.ports import Beat
from tests.support.worlds import World


async def test_a_worker_sees_itself_and_all_others_that_are_not_dead(world: World) -> None:
    first, second = await world.join(), await world.join()

    beats = await first.workers.beat({"email": 3.0})

    assert {beat.worker: beat.beat for beat in beats} == {first.id: 1, second.id: 0}


async def test_every_beat_counts_one(world: World) -> None:
    worker = await world.join()

    beats = [await worker.workers.beat({}) for _ in range(3)]

    assert beats == [[Beat(worker.id, number)] for number in (1, 2, 3)]


async def test_registering_again_changes_nothing(world: World) -> None:
    worker = await world.join()
    await worker.workers.beat({})

    await worker.membership.register()

    assert await worker.workers.beat({}) == [Beat(worker.id, 2)]


async def test_a_worker_is_declared_dead_on_exactly_the_beat_that_was_seen(world: World) -> None:
    first, second = await world.join(), await world.join()
    seen = next(beat for beat in await first.workers.beat({}) if beat.worker == second.id)
    await second.workers.beat({})

    is_dead = await first.workers.declare_dead(seen)

    assert not is_dead
    assert await second.workers.beat({})


async def test_a_dead_worker_is_told_at_its_next_beat_and_seen_no_more(world: World) -> None:
    first, second = await world.join(), await world.join()

    is_dead = await first.workers.declare_dead(Beat(second.id, 0))

    assert is_dead
    with pytest.raises(DeclaredDeadError):
        await second.workers.beat({})
    assert [beat.worker for beat in await first.workers.beat({})] == [first.id]


async def test_a_worker_dies_once(world: World) -> None:
    first, second, third = [await world.join() for _ in range(3)]

    answers = await asyncio.gather(
        *(worker.workers.declare_dead(Beat(second.id, 0)) for worker in (first, third))
    )

    assert sorted(answers) == [False, True]


async def test_an_unknown_worker_can_not_be_declared_dead(world: World) -> None:
    worker, other = await world.join(), await world.join()

    assert not await worker.workers.declare_dead(Beat(other.id, 99))


async def test_a_worker_that_left_is_dead(world: World) -> None:
    first, second = await world.join(), await world.join()

    await second.membership.leave()
    await second.membership.leave()

    assert [beat.worker for beat in await first.workers.beat({})] == [first.id]
    assert not await first.workers.declare_dead(Beat(second.id, 0))
    with pytest.raises(DeclaredDeadError):
        await second.workers.beat({})

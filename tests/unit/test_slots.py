from __future__ import annotations

import asyncio

from broker_worker.worker.slots import Slot, Slots


async def test_a_free_slot_is_held_at_once_and_given_back() -> None:
    slots = Slots(1)

    with slots.slot() as first, slots.slot() as second:
        held = (first.is_held, second.is_held)
    with slots.slot() as third:
        pass

    assert held == (True, False)
    assert third.is_held


async def test_no_more_than_the_limit_hold_a_slot() -> None:
    slots = Slots(3)
    entered = [slots.slot() for _ in range(5)]

    for slot in entered:
        slot.__enter__()

    assert [slot.is_held for slot in entered] == [True, True, True, False, False]


async def test_who_waits_for_a_slot_gets_the_next_free_one() -> None:
    slots = Slots(1)
    order: list[str] = []

    async def late() -> None:
        with slots.slot() as slot:
            order.append(f"late enters, held: {slot.is_held}")
            await slot.acquire()
            order.append("late runs")

    async with asyncio.TaskGroup() as tasks:
        with slots.slot():
            tasks.create_task(late())
            await asyncio.sleep(0)
            order.append("first ends")

    assert order == ["late enters, held: False", "first ends", "late runs"]


async def test_a_slot_that_was_waited_for_in_vain_is_not_lost() -> None:
    slots = Slots(1)

    async def impatient() -> None:
        with slots.slot() as slot:
            await slot.acquire()

    with slots.slot():
        waiting = asyncio.get_running_loop().create_task(impatient())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    with slots.slot() as after:
        is_held = after.is_held

    assert is_held


async def test_the_lane_is_for_one_and_taken_only_if_free() -> None:
    slots, lane = Slots(2), asyncio.Lock()

    with slots.slot() as first, slots.slot() as second:
        await first.acquire_lane(lane)
        await second.acquire_lane(lane)
        alone = (first.is_alone, second.is_alone)

    assert alone == (True, False)
    assert not lane.locked()


async def test_slot_and_lane_are_given_back_when_the_run_is_cut_short() -> None:
    slots, lane = Slots(1), asyncio.Lock()
    seen: list[Slot] = []

    async def run() -> None:
        with slots.slot() as slot:
            await slot.acquire_lane(lane)
            seen.append(slot)
            await asyncio.Event().wait()

    running = asyncio.get_running_loop().create_task(run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])

    assert seen[0].is_alone
    assert not lane.locked()
    with slots.slot() as after:
        assert after.is_held

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

from broker_worker.ports import Clock
from broker_worker.testing.clock import BEGINNING, VirtualClock, in_virtual_time


@in_virtual_time
async def test_ten_years_pass_at_once() -> None:
    clock: Clock = VirtualClock()
    began = time.monotonic()

    await clock.sleep(timedelta(days=3650).total_seconds())

    assert clock.now() == BEGINNING + timedelta(days=3650)
    assert time.monotonic() - began < 5


@in_virtual_time
async def test_timers_fire_in_their_order_and_at_their_time() -> None:
    clock = VirtualClock()
    fired: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        fired.append((name, clock.monotonic()))

    asyncio.get_running_loop().call_later(2, lambda: fired.append(("timer", clock.monotonic())))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait("late", 3))
        tasks.create_task(wait("early", 1))

    assert fired == [("early", 1.0), ("timer", 2.0), ("late", 3.0)]


@in_virtual_time
async def test_a_timeout_is_virtual() -> None:
    clock = VirtualClock()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(600):
            await asyncio.Event().wait()

    assert clock.monotonic() == 600


@in_virtual_time
async def test_time_stands_still_while_there_is_work() -> None:
    clock = VirtualClock()
    asyncio.get_running_loop().call_later(1, lambda: None)

    for _ in range(1000):
        await asyncio.sleep(0)

    assert clock.monotonic() == 0


@in_virtual_time
async def test_a_thread_is_waited_for_in_its_own_time() -> None:
    async with asyncio.timeout(60):
        await asyncio.to_thread(time.sleep, 0.05)

    assert VirtualClock().monotonic() < 30


@in_virtual_time
async def test_a_jump_is_seen_and_fires_nothing() -> None:
    clock = VirtualClock()
    fired: list[float] = []
    asyncio.get_running_loop().call_later(10, lambda: fired.append(clock.monotonic()))

    clock.jump(timedelta(hours=1))
    await asyncio.sleep(0)

    assert (clock.monotonic(), fired) == (3600, [])

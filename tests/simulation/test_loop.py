"""The event loop of simulations: its time, its order, and the processes that live in it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from random import Random
from typing import Any

import pytest

from tests.simulation.loop import LIFE, SPREAD, Life, SimulationLoop, StandstillError


class Stage:
    """A loop, and processes in it that note what they come to."""

    def __init__(self, seed: int = 0) -> None:
        self.loop = SimulationLoop(Random(seed))
        self.noted: list[str] = []
        self.lives: list[Life] = []

    def process(self, work: Coroutine[Any, Any, None]) -> Life:
        life, context = Life(), copy_context()
        context.run(LIFE.set, life)
        self.loop.create_task(work, context=context)  # type: ignore[unused-awaitable]  # runs by itself
        self.lives.append(life)
        return life

    async def work(self, name: str, seconds: float = 1.0) -> None:
        try:
            await asyncio.sleep(seconds)
            self.noted.append(f"{name} worked")
        finally:
            self.noted.append(f"{name} cleaned up")

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.loop.run_until_complete(work)
        finally:
            noted, self.noted = self.noted, []
            self.loop.dispose(self.lives)
            self.loop.close()
            self.noted = noted


def test_time_passes_only_by_waiting() -> None:
    stage = Stage()

    async def wait() -> None:
        await asyncio.sleep(3600)
        assert 3600 <= stage.loop.time() <= 3600 + SPREAD

    stage.run(wait())


def test_a_process_that_died_does_nothing_more_not_even_to_clean_up() -> None:
    stage = Stage()
    life = stage.process(stage.work("dead"))
    stage.process(stage.work("living"))

    async def kill() -> None:
        await asyncio.sleep(0.5)
        life.is_dead = True
        await asyncio.sleep(10)

    stage.run(kill())

    assert stage.noted == ["living worked", "living cleaned up"]


def test_a_paused_process_does_what_was_due_meanwhile_when_it_goes_on() -> None:
    stage = Stage()
    life = stage.process(stage.work("paused"))

    async def pause() -> None:
        life.is_paused = True
        await asyncio.sleep(10)
        stage.noted.append("goes on")
        stage.loop.resume(life)
        await asyncio.sleep(0.1)

    stage.run(pause())

    assert stage.noted == ["goes on", "paused worked", "paused cleaned up"]


def test_what_is_due_together_comes_in_an_order_that_the_seed_decides() -> None:
    orders = []
    for seed in (*range(10), *range(10)):
        stage = Stage(seed)
        for name in "abc":
            stage.process(stage.work(name))
        stage.run(asyncio.sleep(2))
        orders.append(tuple(stage.noted))

    assert orders[:10] == orders[10:]
    assert len(set(orders)) > 1


def test_a_world_in_which_nothing_can_happen_any_more_is_told() -> None:
    stage = Stage()

    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StandstillError):
        stage.run(wait_for_ever())


def test_a_moment_that_does_not_end_is_told() -> None:
    stage = Stage()

    async def go_round() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(StandstillError):
        stage.run(go_round())

"""From a row that says so to a run that is asked to end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from broker_worker.errors import StoreUnavailableError
from broker_worker.services.cancels import Cancels

RUNNING = [(1, 1), (2, 5)]


class FakeRows:
    """The rows of tasks that an operator has cancelled."""

    def __init__(self, *cancelled: tuple[int, int]) -> None:
        self.cancelled = set(cancelled)
        self.is_up = True

    async def requested(self, claims: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        if not self.is_up:
            raise StoreUnavailableError("down")
        return self.cancelled & set(claims)


async def test_a_turn_asks_those_runs_to_end_whose_rows_say_so() -> None:
    stopped: list[tuple[int, int]] = []

    await Cancels(FakeRows((2, 5), (3, 1)), running=lambda: RUNNING, stop=stopped.append).run_once()

    assert stopped == [(2, 5)]


@pytest.mark.parametrize("payload", ["cancel:2", ""], ids=["of a run here", "of a new connection"])
async def test_a_notice_brings_the_next_look_forward(payload: str) -> None:
    stopped: list[tuple[int, int]] = []
    cancels = Cancels(FakeRows((2, 5)), running=lambda: RUNNING, stop=stopped.append)
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(cancels.run_noticed())
        while not looking.done():
            cancels.notice(payload)
            await asyncio.sleep(0)

    assert stopped == [(2, 5)]


@pytest.mark.parametrize("payload", ["cancel:3", "cancel:22", "ended:2", "cancel:", "cancel:x", "2"])
async def test_a_notice_about_something_else_brings_nothing_forward(payload: str) -> None:
    cancels = Cancels(FakeRows(*RUNNING), running=lambda: RUNNING, stop=lambda _: None)

    cancels.notice(payload)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await cancels.run_noticed()


async def test_a_notice_counts_once_however_often_it_is_heard() -> None:
    stopped: list[tuple[int, int]] = []
    cancels = Cancels(FakeRows((1, 1)), running=lambda: RUNNING, stop=stopped.append)
    cancels.notice("cancel:1")
    cancels.notice("cancel:1")

    await cancels.run_noticed()

    assert stopped == [(1, 1)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await cancels.run_noticed()


async def test_a_notice_alone_ends_nothing() -> None:
    stopped: list[tuple[int, int]] = []
    cancels = Cancels(FakeRows(), running=lambda: RUNNING, stop=stopped.append)
    cancels.notice("cancel:1")

    await cancels.run_noticed()

    assert stopped == []


async def test_a_look_that_failed_is_not_repeated_by_itself() -> None:
    rows = FakeRows((1, 1))
    rows.is_up = False
    cancels = Cancels(rows, running=lambda: RUNNING, stop=lambda _: None)
    cancels.notice("cancel:1")
    with pytest.raises(StoreUnavailableError):
        await cancels.run_noticed()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await cancels.run_noticed()

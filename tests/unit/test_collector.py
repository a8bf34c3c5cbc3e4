from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from broker_worker.collector import PYTHONS_THRESHOLDS, THRESHOLDS, Collector


class Knot:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.set_threshold(*PYTHONS_THRESHOLDS)
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_python_begins_with_the_thresholds_that_we_take_for_its_own() -> None:
    program = "import gc; print(*gc.get_threshold())"

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert said.stdout.split() == [str(each) for each in PYTHONS_THRESHOLDS]


async def test_what_is_left_in_a_cycle_is_freed_at_the_next_turn() -> None:
    collector = Collector()
    collector.begin()
    left = weakref.ref(Knot())

    was_there = left() is not None
    await collector.run_once()

    assert was_there
    assert left() is None
    assert gc.get_threshold() == THRESHOLDS


def test_what_was_loaded_before_it_begins_is_never_looked_at_again() -> None:
    collector = Collector()
    loaded: list[list[int]] = [[]]
    collector.begin()

    assert not any(each is loaded for each in gc.get_objects())


async def test_looks_at_all_take_a_thousandth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    seconds = iter(range(0, 1000, 2))  # each look seems to take two
    monkeypatch.setattr("broker_worker.collector.gc.collect", lambda *generation: looked.extend(generation))
    monkeypatch.setattr("broker_worker.collector.time.thread_time", lambda: next(seconds))
    collector = Collector()
    collector.begin()

    for _ in range(10 + 2000):
        await collector.run_once()

    assert looked.count(2) == 2


@pytest.mark.parametrize("turns", [1, 30], ids=["for a turn", "for long"])
async def test_what_is_left_in_a_cycle_after_it_was_in_use_is_freed_within_ten_seconds(turns: int) -> None:
    collector = Collector()
    collector.begin()
    in_use = [Knot()]
    left = weakref.ref(in_use[0])
    for _ in range(turns):
        await collector.run_once()

    in_use.clear()
    was_there = left() is not None
    for _ in range(10):
        await collector.run_once()

    assert was_there
    assert left() is None


BURST = """
import asyncio
from pathlib import Path
from broker_worker.collector import Collector

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

async def main():
    collector = Collector()
    collector.begin()
    begun = resident()
    burst = [bytes(1000) for _ in range(50_000)]
    stays = burst[::500]
    most = resident()
    del burst
    for _ in range(60):
        await collector.run_once()
    print(most - begun, resident() - begun, len(stays))

asyncio.run(main())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library sees to it itself, or never")
def test_what_a_burst_has_taken_goes_back_to_the_system_within_a_minute() -> None:
    said = subprocess.run([sys.executable, "-c", BURST], capture_output=True, text=True, check=True)
    taken, kept, _ = map(int, said.stdout.split())

    assert taken > 40_000_000
    assert kept < taken / 4


async def test_thresholds_of_the_programs_own_are_kept() -> None:
    gc.set_threshold(123, 4, 5)

    Collector().begin()

    assert gc.get_threshold() == (123, 4, 5)

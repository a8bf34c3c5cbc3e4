"""Who is measured has the machine for itself; while one stops, the next is prepared."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from benchmarks import throughput
from benchmarks.contestant import Contestant
from benchmarks.driving import Run, RunError, Turn
from benchmarks.scale import SMOKE
from benchmarks.servers import BenchServers
from benchmarks.throughput import compete

SERVERS = BenchServers("none", "none", "none", "none")
TWICE = replace(SMOKE, rounds=2)


def contestant(name: str) -> Contestant:
    return Contestant(name=name, title=name, runner="none")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs do, in order. Who is called `broken` can't be filled."""
    steps: list[str] = []

    async def run_once(contestant: Contestant, servers: BenchServers, messages: int, turn: Turn) -> Run:
        steps.append(f"{contestant.name} fills")
        await asyncio.sleep(0)
        if contestant.name == "broken":
            raise RunError("it can't")
        await turn.come()
        steps.append(f"{contestant.name} is measured")
        await asyncio.sleep(0)
        steps.append(f"{contestant.name} is done")
        turn.is_over.set()
        for _ in range(5):
            await asyncio.sleep(0)
        steps.append(f"{contestant.name} has stopped")
        return Run(messages, 1.0, 1.0)

    monkeypatch.setattr(throughput, "run_once", run_once)
    return steps


async def test_the_next_is_filled_while_one_stops_and_measured_when_it_has_stopped(seen: list[str]) -> None:
    await compete([contestant("a"), contestant("b")], SERVERS, SMOKE)

    assert seen == [
        *("a fills", "a is measured", "a is done"),
        *("b fills", "a has stopped", "b is measured", "b is done", "b has stopped"),
    ]


async def test_every_second_round_goes_backwards(seen: list[str]) -> None:
    standings = await compete([contestant("a"), contestant("b")], SERVERS, TWICE)

    measured = [step.split()[0] for step in seen if step.endswith("measured")]
    assert measured == ["a", "b", "b", "a"]
    assert [len(standing.runs) for standing in standings] == [2, 2]


async def test_who_fails_lets_nobody_in_before_the_last_has_stopped_and_runs_no_more(seen: list[str]) -> None:
    standings = await compete([contestant("a"), contestant("broken"), contestant("b")], SERVERS, TWICE)

    assert seen.index("a has stopped") < seen.index("b fills")
    assert seen.count("broken fills") == 1
    assert [standing.failure for standing in standings] == ["", "RunError: it can't", ""]

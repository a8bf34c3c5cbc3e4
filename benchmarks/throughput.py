"""Interleaved rounds of all contestants."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.contestant import Contestant
from benchmarks.driving import Run, Turn, run_once
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers

ROUND_OFF = 50  # messages: aiormq_multi_ack acks so many at once


@dataclass(slots=True)
class Standing:
    """One contestant and all its runs."""

    contestant: Contestant
    messages: int  # in each round
    runs: list[Run] = field(default_factory=list)
    failure: str = ""  # why it runs no more

    @property
    def rate(self) -> float:
        """The median of its rounds, messages per second; 0 without any."""
        return median(run.rate for run in self.runs) if self.runs else 0.0

    @property
    def processor_microseconds(self) -> float:
        """The median of the processor time per message that its own processes took."""
        return median(run.processor_seconds / run.messages * 1e6 for run in self.runs) if self.runs else 0.0


async def compete(contestants: Sequence[Contestant], servers: BenchServers, scale: Scale) -> list[Standing]:
    """Run everyone once in each round, every second round backwards, so that nobody always follows the same.

    Who fails is left out of the rounds that follow. While one stops, the tasks of the next are filled in; but
    who is measured has the machine for itself.
    """
    standings = [Standing(contestant, messages_of(contestant, scale)) for contestant in contestants]
    before: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as runs:
        for number in range(scale.rounds):
            for standing in standings if number % 2 == 0 else reversed(standings):
                if not standing.failure:
                    turn = Turn(before)
                    before = runs.create_task(_run(standing, servers, turn))
                    await turn.is_over.wait()
    return standings


def messages_of(contestant: Contestant, scale: Scale) -> int:
    """Return how many messages a contestant gets in each round."""
    return max(ROUND_OFF, round(scale.messages * contestant.share / ROUND_OFF) * ROUND_OFF)


async def _run(standing: Standing, servers: BenchServers, turn: Turn) -> None:
    name = standing.contestant.name
    try:
        run = await run_once(standing.contestant, servers, standing.messages, turn)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one must not cost the runs of the others
        standing.failure, _, log = f"{type(error).__name__}: {error}".partition("\n")
        sys.stderr.write(f"{name:28} failed: {standing.failure}\n{log}\n")
        return
    finally:
        await turn.come()  # who failed before that must not let the next one in
        turn.is_over.set()
    standing.runs.append(run)
    each = run.processor_seconds / run.messages * 1e6
    sys.stderr.write(f"{name:28} {run.rate:8,.0f} messages/s {each:8,.0f} µs of processor each\n")

"""Interleaved rounds of all contestants, and what they come to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.contestant import Contestant
from benchmarks.driving import Run, RunError, run_once
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers

ROUND_OFF = 50  # messages: aiormq_multi_ack acks so many at once


@dataclass(slots=True)
class Standing:
    """One contestant and all its runs."""

    contestant: Contestant
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

    Who fails is left out of the rounds that follow.
    """
    standings = [Standing(contestant) for contestant in contestants]
    for number in range(scale.rounds):
        for standing in standings if number % 2 == 0 else reversed(standings):
            if not standing.failure:
                await _run(standing, servers, messages_of(standing.contestant, scale))
    return standings


def messages_of(contestant: Contestant, scale: Scale) -> int:
    """Return how many messages a contestant gets in each round."""
    return max(ROUND_OFF, round(scale.messages * contestant.share / ROUND_OFF) * ROUND_OFF)


async def _run(standing: Standing, servers: BenchServers, messages: int) -> None:
    try:
        run = await run_once(standing.contestant, servers, messages)
    except RunError as error:
        standing.failure = str(error)
        sys.stderr.write(f"{standing.contestant.name:28} failed: {error}\n")
        return
    standing.runs.append(run)
    sys.stderr.write(
        f"{standing.contestant.name:28} {run.rate:8,.0f} messages/s"
        f" {run.processor_seconds / run.messages * 1e6:8.0f} µs of processor each\n"
    )


def best_variants(standings: Sequence[Standing]) -> dict[str, Standing]:
    """Return the faster of those that stand for one row, by the row's name; everyone else by their own."""
    rows: dict[str, Standing] = {}
    for standing in standings:
        name = standing.contestant.variant_of or standing.contestant.name
        if name not in rows or standing.rate > rows[name].rate:
            rows[name] = standing
    return rows

"""From the runs to the rows of the table: medians and ratios, decided without any effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.report import REFERENCE, Row
from benchmarks.throughput import Standing


def rows(standings: Sequence[Standing]) -> dict[str, Row]:
    """Return a row for each contestant, and before its variants one for the fastest of them."""
    best = best_variants(standings)
    shown = best | {standing.contestant.name: standing for standing in standings}
    rate = {name: standing.rate for name, standing in shown.items() if standing.rate}
    return {name: _row(name, standing, rate) for name, standing in shown.items()}


def best_variants(standings: Sequence[Standing]) -> dict[str, Standing]:
    """Return the faster of those that stand for one row, by the row's name; everyone else by their own."""
    best: dict[str, Standing] = {}
    for standing in standings:
        name = standing.contestant.variant_of or standing.contestant.name
        if name not in best or standing.rate > best[name].rate:
            best[name] = standing
    return best


def _row(name: str, standing: Standing, rate: Mapping[str, float]) -> Row:
    contestant = standing.contestant
    row = Row(
        title=contestant.title,
        persists=contestant.persists,
        setting=contestant.setting,
        messages=standing.messages,
        rounds=[run.rate for run in standing.runs],
        median=standing.rate,
        ratio=_divided(rate, name, REFERENCE),
        processor_us=standing.processor_microseconds,
        failure=standing.failure,
    )
    goal = contestant.goal
    if goal is None or name != (contestant.variant_of or name):  # a row has it once, and not each variant
        return row
    to = goal.to or name
    ratio = _divided(rate, goal.of, to)
    return replace(row, compared=f"{goal.of} / {to}", compared_ratio=ratio, goal=goal.least)


def _divided(rate: Mapping[str, float], of: str, to: str) -> float | None:
    return rate[of] / rate[to] if of in rate and to in rate else None

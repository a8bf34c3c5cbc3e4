"""Measure broker_worker beside its peers: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import pkgutil
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import measures
from benchmarks.contestant import Contestant
from benchmarks.contestants import CONTESTANTS
from benchmarks.machine import machine, versions
from benchmarks.report import LATEST, REFERENCE, Figure, Report, Row, plain, write
from benchmarks.scale import FULL, QUICK, SMOKE, Scale
from benchmarks.servers import BenchServers, bench_servers
from benchmarks.throughput import Standing, best_variants, compete, messages_of


def main() -> int:
    """Run what the command line asks for; 1 if a contestant or a measure failed."""
    options = _options()
    scale = _scale(options)
    chosen = _chosen(options.only)
    with bench_servers() as servers:
        sys.stderr.write(f"{servers.how}\n")
        standings, report = asyncio.run(_measure(chosen, _measures(options.measures), servers, scale))
    sys.stdout.write(plain(report) + "\n")
    is_whole = options.only is None and options.measures is None and scale.name != "smoke"
    path = options.output or (LATEST if is_whole else None)
    if path is not None:
        write(report, path)
        sys.stderr.write(f"written to {path}\n")
    failed = [standing for standing in standings if standing.failure]
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", dest="scale", const=QUICK, help="two minutes")
    size.add_argument("--smoke", action="store_const", dest="scale", const=SMOKE, help="only that it works")
    parser.add_argument("--messages", type=int, help="of one run of a contestant, before its share")
    parser.add_argument("--rounds", type=int, help="in how many rounds each contestant runs once")
    parser.add_argument("--only", type=_names, help="contestants, separated by commas, or none")
    parser.add_argument("--measures", type=_names, help="further measures, separated by commas, or none")
    parser.add_argument("--output", type=Path, help=f"where to write JSON; default {LATEST.name}, if all ran")
    parser.set_defaults(scale=FULL)
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _scale(options: argparse.Namespace) -> Scale:
    scale: Scale = options.scale
    return replace(scale, messages=options.messages or scale.messages, rounds=options.rounds or scale.rounds)


def _chosen(only: Collection[str] | None) -> list[Contestant]:
    if only is None:
        return list(CONTESTANTS)
    known = {name for each in CONTESTANTS for name in (each.name, each.variant_of) if name is not None}
    if unknown := set(only) - known:
        raise SystemExit(f"no such contestant: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [each for each in CONTESTANTS if each.name in only or each.variant_of in only]


def _measures(only: Collection[str] | None) -> list[str]:
    known = sorted(module.name for module in pkgutil.iter_modules(measures.__path__))
    if only is None:
        return known
    if unknown := set(only) - set(known):
        raise SystemExit(f"no such measure: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in only]


async def _measure(
    chosen: Sequence[Contestant], names: Sequence[str], servers: BenchServers, scale: Scale
) -> tuple[list[Standing], Report]:
    standings = await compete(chosen, servers, scale)
    figures: list[Figure] = []
    for name in names:
        found = importlib.import_module(f"benchmarks.measures.{name}").measure(servers, scale)
        figures += await found if inspect.isawaitable(found) else found
    report = Report(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        scale=scale.name,
        machine=machine(Path(tempfile.gettempdir())),
        versions=versions() | await servers.versions(),
        contestants=_rows(standings, scale),
        measures=figures,
    )
    return standings, report


def _rows(standings: Sequence[Standing], scale: Scale) -> dict[str, Row]:
    best = best_variants(standings)
    shown = best | {standing.contestant.name: standing for standing in standings}
    rate = {name: standing.rate for name, standing in shown.items() if standing.rate}
    return {name: _row(name, standing, rate, scale) for name, standing in shown.items()}


def _row(name: str, standing: Standing, rate: Mapping[str, float], scale: Scale) -> Row:
    contestant = standing.contestant
    row = Row(
        title=contestant.title,
        persists=contestant.persists,
        setting=contestant.setting,
        messages=messages_of(contestant, scale),
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
    return replace(
        row, compared=f"{goal.of} / {to}", compared_ratio=_divided(rate, goal.of, to), goal=goal.least
    )


def _divided(rate: Mapping[str, float], of: str, to: str) -> float | None:
    return rate[of] / rate[to] if of in rate and to in rate else None


if __name__ == "__main__":
    sys.exit(main())

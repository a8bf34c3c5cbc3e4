"""Measure broker_worker beside its peers: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import pkgutil
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import measures as further
from benchmarks.contestant import Contestant
from benchmarks.contestants import CONTESTANTS
from benchmarks.machine import machine, versions
from benchmarks.report import LATEST, Figure, Report, write
from benchmarks.rows import rows
from benchmarks.scale import FULL, QUICK, SMOKE, Scale
from benchmarks.servers import BenchServers, bench_servers
from benchmarks.tables import plain
from benchmarks.throughput import compete

SLOW = frozenset({"growth"})  # measures that mean nothing at a size for which a quick look has time


def main() -> int:
    """Run what the command line asks for; 1 if a contestant or a measure failed, whatever the goals say."""
    options = _options()
    scale = _scale(options)
    chosen, measures = _chosen(options.only, scale), _measures(options.measures, scale)
    with bench_servers() as servers:
        sys.stderr.write(f"{servers.how}\n")
        report = asyncio.run(_run(chosen, measures, servers, scale))
    sys.stdout.write(plain(report) + "\n")
    is_whole = options.only is None and options.measures is None and report.scale != "smoke"
    path = options.output or (LATEST if is_whole else None)
    if path is not None:
        write(report, path)
        sys.stderr.write(f"written to {path}\n")
    return 1 if report.failures or any(row.failure for row in report.contestants.values()) else 0


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


def _chosen(only: Collection[str] | None, scale: Scale) -> list[Contestant]:
    if only is None:
        return [each for each in CONTESTANTS if each.is_quick or scale.name != "quick"]
    known = {name for each in CONTESTANTS for name in (each.name, each.variant_of) if name is not None}
    if unknown := set(only) - known:
        raise SystemExit(f"no such contestant: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [each for each in CONTESTANTS if each.name in only or each.variant_of in only]


def _measures(only: Collection[str] | None, scale: Scale) -> list[str]:
    known = sorted(module.name for module in pkgutil.iter_modules(further.__path__))
    if only is None:
        return [name for name in known if name not in SLOW or scale.name != "quick"]
    if unknown := set(only) - set(known):
        raise SystemExit(f"no such measure: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in only]


async def _run(
    chosen: Sequence[Contestant], names: Sequence[str], servers: BenchServers, scale: Scale
) -> Report:
    standings = await compete(chosen, servers, scale)
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    for name in names:
        began = time.monotonic()
        try:
            figures += await _figures(name, servers, scale)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one must not cost what others found
            failures[name], _, log = f"{type(error).__name__}: {error}".partition("\n")
            sys.stderr.write(f"{log}\n")
        sys.stderr.write(f"{name:28} {time.monotonic() - began:.0f} s {failures.get(name, '')}\n")
    return Report(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        scale=scale.name,
        machine=machine(Path(tempfile.gettempdir())),
        versions=versions() | await servers.versions(),
        contestants=rows(standings),
        measures=figures,
        failures=failures,
    )


async def _figures(name: str, servers: BenchServers, scale: Scale) -> list[Figure]:
    """Run one measure, which may be a coroutine."""
    found = importlib.import_module(f"benchmarks.measures.{name}").measure(servers, scale)
    figures: list[Figure] = await found if inspect.isawaitable(found) else found
    return figures


if __name__ == "__main__":
    sys.exit(main())

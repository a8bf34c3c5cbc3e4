"""`make chaos`: a run against real servers, and the simulation's seeds; what came out is written down.

It ends with 1 where a promise was broken or a target missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.faults.results import Results, show, summarise
from tests.faults.runner import Plan, run
from tests.faults.schedule import schedule
from tests.faults.seeds import simulate

RESULTS = Path(__file__).parent / "results"
SEEDS_A_MINUTE = 170  # of the simulation, for each minute of the run
MOST_SEEDS = 10_000


def main() -> int:
    """Run, write the results, and say them."""
    options = arguments()
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    seeds = (
        options.seeds
        if options.seeds is not None
        else min(MOST_SEEDS, round(SEEDS_A_MINUTE * options.minutes))
    )
    seconds = options.minutes * 60
    sys.stdout.write(
        f"seed {seed}: {options.minutes:g} minutes, {options.messages} messages, {options.faults} faults\n"
    )
    sys.stdout.flush()
    planned = schedule(seed, seconds=seconds, faults=options.faults)
    plan = Plan(seed=seed, messages=options.messages, faults=planned, seconds=seconds)
    folder = Path(options.keep or tempfile.mkdtemp(prefix="broker-worker-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    ran = asyncio.run(run(plan, folder))
    results = summarise(plan, ran, minutes=options.minutes, simulation=simulate(seed, seeds))
    write(results, Path(options.output))
    sys.stdout.write(show(results))
    if ran.verdict.is_clean and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        sys.stdout.write(f"\n{(folder / 'report.txt').read_text()}\nall that was recorded: {folder}\n")
    return 0 if results.is_met else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--faults", type=int, default=510)
    parser.add_argument("--seed", type=int, help="drawn and said without it")
    parser.add_argument("--seeds", type=int, help="of the simulation; 10,000 for an hour, less for less")
    parser.add_argument("--keep", help="a folder for all that is recorded, also of a run without violations")
    parser.add_argument("--output", default=str(RESULTS / "latest.json"))
    return parser.parse_args()


def write(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results.facts, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""Judge many seeds: `python -m tests.simulation --seeds 10000 --first 1 --output FILE.json`.

Failing seeds are printed with the timelines of their first witnesses, and the exit code is 1.
One seed alone: `--seeds 1 --first N`; its files, for `python -m tests.faults.checker`: `--dump DIR`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.simulation.judging import Tally, judge

SHOWN = 3  # failing seeds whose witnesses are printed
REPORT_INTERVAL = 60.0  # seconds between two lines about how far it is


def main() -> int:
    """Run; the exit code."""
    asked = _arguments()
    total, reported = Tally(), time.monotonic()
    for seed in range(asked.first, asked.first + asked.seeds):
        judged = judge(seed)
        total.add(judged)
        if asked.dump is not None:
            judged.simulated.recording.dump(asked.dump / str(seed))
        if judged.problems:
            print(f"seed {seed} FAILED: {judged.problems[0]}", flush=True)  # noqa: T201 - a command
            if len(total.failing) <= SHOWN:
                print("\n".join(judged.witnesses()), flush=True)  # noqa: T201
        if time.monotonic() - reported > REPORT_INTERVAL:
            reported = time.monotonic()
            print(f"{total.seeds} seeds, {len(total.failing)} failed", flush=True)  # noqa: T201
    if asked.output is not None:
        asked.output.write_text(total.dump() + "\n")
    print(f"{total.seeds} seeds from {asked.first} on, {len(total.failing)} failed: {sorted(total.failing)}")  # noqa: T201
    return 1 if total.failing else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--dump", type=Path, help="a directory for the records of each seed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

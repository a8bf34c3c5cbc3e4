"""The simulation's part of a run: a program for each processor, and what they found together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.daemons import ROOT


def simulate(first: int, seeds: int) -> dict[str, Any] | None:
    """Try so many seeds from `first` on; what the simulation says of them, None where none was wanted."""
    if not seeds:
        return None
    programs = min(os.cpu_count() or 1, seeds)
    bounds = [first + seeds * number // programs for number in range(programs + 1)]
    found: dict[str, Any] = {"exit_code": 0}
    with tempfile.TemporaryDirectory(prefix="broker-worker-seeds-") as folder:
        outputs = [Path(folder) / f"{number}.json" for number in range(programs)]
        running = [
            subprocess.Popen(command(begin, end - begin, output), cwd=ROOT)
            for begin, end, output in zip(bounds, bounds[1:], outputs, strict=False)
        ]
        try:
            for program, output in zip(running, outputs, strict=True):
                found["exit_code"] = max(found["exit_code"], abs(program.wait()))
                if not output.exists():
                    return found | {"error": f"it ended with {program.returncode} and wrote nothing"}
                found = added(found, json.loads(output.read_text()))
        finally:
            for program in running:
                program.kill()
                program.wait()
    return found


def command(first: int, seeds: int, output: Path) -> list[str]:
    how = ["--seeds", str(seeds), "--first", str(first), "--output", str(output)]
    return [sys.executable, "-m", "tests.simulation", *how]


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both together: numbers are summed up, what has names is put together."""
    both = dict(one)
    for name, value in other.items():
        before = both.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            both[name] = added(before, value)
        elif isinstance(value, int) and isinstance(before, int):
            both[name] = before + value
        else:
            both[name] = value
    return both

"""The simulation's part of a run: a program of its own, that writes what it found into a file."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.daemons import ROOT


def simulate(first: int, seeds: int) -> dict[str, Any] | None:
    """Try so many seeds from `first` on; what it says of them, None where none was wanted."""
    if not seeds:
        return None
    with tempfile.TemporaryDirectory(prefix="broker-worker-seeds-") as folder:
        output = Path(folder) / "seeds.json"
        command = [
            "-m",
            "tests.simulation",
            "--seeds",
            str(seeds),
            "--first",
            str(first),
            "--output",
            str(output),
        ]
        ended = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
        if not output.exists():
            return {"seeds": 0, "error": f"it ended with {ended.returncode} and wrote nothing"}
        found: dict[str, Any] = json.loads(output.read_text())
        return found | {"exit_code": ended.returncode}

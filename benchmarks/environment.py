"""The environment of the peers, `.venv-bench`: what requirements/benchmarks.txt locks, hashes checked.

It is made when it is first needed, and anew when the lock or the Python has changed. Peers are not installed
beside broker_worker: they would draw their own dependencies into the environment that is tested.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS_TO_MAKE = 600.0  # on a slow network


class EnvironmentMissingError(Exception):
    """The environment cannot be made here; its text says why, for people."""


def peers_python(root: Path = ROOT) -> Path:
    """Return the Python of an up-to-date `.venv-bench` under `root`; make it first if it is missing or old.

    A second process that asks meanwhile waits for the first.

    Raises:
        EnvironmentMissingError: no installer works here, for example because no package index is in reach.
    """
    lock, venv = root / "requirements" / "benchmarks.txt", root / ".venv-bench"
    made_from = venv / "made-from"
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        wanted = fingerprint(file.read(), sys.version)
        if not made_from.exists() or made_from.read_text() != wanted:
            make(venv, lock)
            made_from.write_text(wanted)
    return python_of(venv)


def fingerprint(lock: bytes, python: str) -> str:
    """Return what an environment is known by: the same text for the same lock under the same Python."""
    return f"{hashlib.sha256(lock).hexdigest()} {python}"


def make(venv: Path, lock: Path) -> None:
    """Make `venv` anew with uv where there is one, else, and if that fails, with venv and pip."""
    faults: list[str] = []
    for commands in ways(find_uv(), venv, lock):
        fault = first_fault(commands)
        if fault is None:
            return
        faults.append(fault)
    raise EnvironmentMissingError(f"cannot make {venv.name}: " + "; ".join(faults))


def ways(uv: str | None, venv: Path, lock: Path) -> list[list[Sequence[str | Path]]]:
    """Return the ways to make `venv`, best first, each a list of commands."""
    python = python_of(venv)
    with_pip: list[Sequence[str | Path]] = [
        (sys.executable, "-m", "venv", "--clear", venv),
        (python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", lock),
    ]
    if uv is None:
        return [with_pip]
    with_uv: list[Sequence[str | Path]] = [
        (uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv),
        (uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "--requirement", lock),
    ]
    return [with_uv, with_pip]


def find_uv() -> str | None:
    """Return the uv on the path, or the one beside our Python (the lock of development has it)."""
    return shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))


def first_fault(commands: Sequence[Sequence[str | Path]]) -> str | None:
    """Run the commands one after the other; return the last line of the first that fails, or None."""
    for command in commands:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_MAKE, check=False)
        if ran.returncode != 0:
            said = (ran.stderr or ran.stdout).strip().splitlines() or ["no output"]
            return f"{Path(command[0]).name}: {said[-1]}"
    return None


def python_of(venv: Path) -> Path:
    """Return where the interpreter of an environment is."""
    return venv / "bin" / "python"

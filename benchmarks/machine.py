"""What the benchmarks ran on: the machine, and the versions of what took part."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements" / "benchmarks.txt"
PEERS = ("celery", "dramatiq", "faststream", "pgqueuer", "procrastinate", "taskiq", "taskiq-aio-pika")
OURS = ("aio-pika", "aiormq", "asyncpg", "pydantic", "sqlalchemy", "uvloop")
FILESYSTEM = ("stat", "--file-system", "--format=%T")


def machine(folder: Path) -> dict[str, str]:
    """Describe this machine; `folder` is on the disk that the servers write to."""
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int((_first('/proc/meminfo', 'MemTotal') or '0 kB').split()[0]) / 1024**2:.0f} GiB",
        "filesystem": subprocess.run(
            [*FILESYSTEM, folder], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of what our own environment brings, and of the peers as locked."""
    found = {"python": platform.python_version()}
    for package in OURS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(), re.MULTILINE))
    return found | {peer: locked[peer] for peer in PEERS}


def _first(path: str, name: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None

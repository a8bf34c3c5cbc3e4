"""How much processor time a tree of processes has taken, as /proc shows it (in hundredths of a second)."""

from __future__ import annotations

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PARENT, USER, SYSTEM = 1, 11, 12  # fields of /proc/<pid>/stat behind the name in brackets; state is 0
USER_OF_REAPED, SYSTEM_OF_REAPED = 13, 14


def below(root: int) -> float:
    """Return the seconds that all living descendants of `root`, and those that these reaped, have taken."""
    fields_by_pid = dict(_all_processes())
    wanted, generation = {root}, {root}
    while generation:
        generation = {pid for pid, fields in fields_by_pid.items() if int(fields[PARENT]) in generation}
        wanted |= generation
    counted = (USER, SYSTEM, USER_OF_REAPED, SYSTEM_OF_REAPED)
    return sum(int(fields_by_pid[pid][field]) for pid in wanted - {root} for field in counted) / TICKS


def _all_processes() -> list[tuple[int, list[str]]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # the name in brackets may hold anything, so count from its end
                found.append((int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found

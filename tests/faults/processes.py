"""Programs of ours, each under a keeper that ends it with us; and what /proc says of a process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker_worker.local.process import KeptProcess, Program

PAGE = os.sysconf("SC_PAGE_SIZE")
SIGNALLED = 128


class Kept:
    """One running program."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._kept = KeptProcess(Program(command=command, environment=environment, folder=None, log=log))
        self._pid = 0

    @property
    def pid(self) -> int:
        """The program's own; 0 once it is gone."""
        if self._pid == 0:
            self._pid = next(iter(children_of(self._kept.pid)), 0)
        return self._pid

    def is_running(self) -> bool:
        return self._kept.is_running()

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; whether it was there to get it."""
        if not (self.is_running() and self.pid):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def exit_code(self) -> int:
        """How it ended; less than 0: the signal that ended it."""
        code = self._kept.wait(1)
        return code - 256 if code > SIGNALLED else code

    def end(self) -> None:
        """End it for good."""
        self.signal(signal.SIGCONT)
        self._kept.end()


def children_of(pid: int, *, deep: bool = False) -> list[int]:
    """The children of a process; `deep`: and theirs."""
    by_parent: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the name in brackets may hold anything, so count from its end: state, then parent
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                by_parent[parent].append(int(entry.name))
    found = list(by_parent[pid])
    if deep:
        for child in found:
            found.extend(by_parent[child])
    return found


def resident(pid: int) -> int:
    """Bytes of memory that are its own; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def open_files(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    return 0

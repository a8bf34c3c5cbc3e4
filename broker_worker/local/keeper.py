"""Runs one server and leaves nothing of it behind, whatever becomes of the program that wanted it.

Started by `process.py` as a plain script, so it imports nothing but the standard library. Its standard
input is a pipe whose other end only the owner holds: a byte is an order, and the end of it means that the
owner has ended, in whatever way. As a subreaper it inherits the daemons that a server starts on the side
(epmd), so its descendants are exactly what has to go. A death signal set on the server (PR_SET_PDEATHSIG)
would not do: it follows the thread that forked, and the server's own children do not inherit it.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

STOP, KILL = b"s", b"k"
PR_SET_CHILD_SUBREAPER = 36
SECONDS_TO_END = 5.0  # for the last clean-up of a server whose owner has gone


def main(arguments: list[str]) -> int:
    """Keep the server of `arguments` until it ends, or until the owner orders or ends."""
    folder, user, group, stop_signal, end_signal, *command = arguments
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, lambda *_: None)  # not SIG_IGN, which the server would inherit
    as_other = {"user": int(user), "group": int(group), "extra_groups": []} if user else {}
    with subprocess.Popen(  # type: ignore[call-overload]  # no overload takes the three as a mapping
        command, stdin=subprocess.DEVNULL, cwd=folder or None, **as_other
    ) as server:
        while (order := wait_for_order(server.pid)) == STOP:
            server.send_signal(int(stop_signal))
        if order == b"":
            server.send_signal(int(end_signal))
            wait_for_end(server.pid, SECONDS_TO_END)
        server.poll()  # its status, before the adopted ones are reaped
        kill_descendants()
    if order == b"" and folder:
        shutil.rmtree(folder, ignore_errors=True)
    return int(server.returncode)


def wait_for_order(server: int) -> bytes | None:
    """Return the next order, b"" if the owner has ended, None if the server has."""
    with os.fdopen(os.pidfd_open(server)) as ended:
        ready, _, _ = select.select([sys.stdin, ended], [], [])
    return os.read(sys.stdin.fileno(), 1) if sys.stdin in ready else None


def wait_for_end(server: int, seconds: float) -> None:
    """Return when the process has ended, or after `seconds`."""
    with os.fdopen(os.pidfd_open(server)) as ended:
        select.select([ended], [], [], seconds)


def kill_descendants() -> None:
    """Kill until there is none left: one may be forking while its parent is being killed."""
    while alive := descendants(os.getpid()):
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended first
        time.sleep(0.01)
        reap_adopted()


def reap_adopted() -> None:
    """Collect what has ended, the server excepted: its own `Popen` copes with having been collected."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return


def descendants(root: int) -> list[int]:
    """Every process below `root`, as /proc shows it now; zombies too, until they are reaped."""
    children_by_parent: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # the name in brackets may hold anything, so count from its end: state, then parent
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children_by_parent[parent].append(int(entry.name))
    found = list(children_by_parent[root])
    for pid in found:
        found.extend(children_by_parent[pid])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

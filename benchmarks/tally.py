"""What each handler calls: proof that it ran, and when. Standard library only: peers import it as well.

`python -m` of a runner has this module at hand; the file named by BENCH_TALLY is opened at the first call, in
each process anew.
"""

from __future__ import annotations

import os
import struct
import time
from array import array
from pathlib import Path

STAMP = struct.Struct("d")
_pack = STAMP.pack
_now = time.monotonic  # CLOCK_MONOTONIC: the same for all processes of a machine
_file: list[int] = []  # at most one; empty again after a fork, so that no offset is shared
os.register_at_fork(after_in_child=_file.clear)


def count() -> None:
    """Add one stamp. A single write to a file in append mode: processes and threads don't mix theirs."""
    if not _file:
        _file.append(os.open(os.environ["BENCH_TALLY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666))
    os.write(_file[0], _pack(_now()))


def counted(path: Path) -> int:
    """Return how many stamps are there."""
    try:
        return path.stat().st_size // STAMP.size
    except FileNotFoundError:
        return 0


def stamps(path: Path) -> array[float]:
    """Return the stamps, seconds of the monotonic clock, in the order of their writing."""
    return array("d", path.read_bytes())

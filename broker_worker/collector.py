"""When Python's cycle collector looks, for a daemon whose objects live until their commit.

Each delivery makes some hundred objects that are freed with it, without the collector. Left
alone it looks at those in flight again and again, for a tenth of what a small task costs. Here
it looks once a second, so that what failed attempts leave behind in cycles (an exception, its
frames, and the body in one of them) does not pile up, and whenever very much is there at once.
What was in use while it looked is older: a connection that was lost, an outcome that waited for
the database. As the young never become too many, nothing else would ever look at those.

A minute of lost connections leaves some megabytes of errors and frames, and what is made meanwhile
and stays lies between them, so the look at all comes as often as its cost allows. After it, pages
that a burst has left free go back to the system: the C library would keep them for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time

PYTHONS_THRESHOLDS = (700, 10, 10)
THRESHOLDS = (200_000, 20, 50)  # objects; collections of the younger generation
YOUNG, OLDER, ALL = range(3)
TURNS_BETWEEN_OLDER, TURNS_BETWEEN_ALL = 10, 10  # seconds
MOST_OF_THE_TIME = 0.001  # share of it for looks at all, which hold everything up: a handler may have much


class Collector:
    """Paces the collector of this process. A program that has set thresholds of its own keeps them."""

    def __init__(self) -> None:
        self._turns = 0
        self._all_at = TURNS_BETWEEN_ALL
        self._is_ours = False

    def begin(self) -> None:
        """Take the pace over from Python, and never look again at what is there now: all that was loaded."""
        self._is_ours = gc.get_threshold() == PYTHONS_THRESHOLDS
        if self._is_ours:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*THRESHOLDS)

    async def run_once(self) -> None:
        """Look at what has come since the last time."""
        if not self._is_ours:
            return
        self._turns += 1
        if self._turns >= self._all_at:
            began = time.thread_time()
            gc.collect(ALL)
            _give_back()
            took = time.thread_time() - began
            self._all_at = self._turns + max(TURNS_BETWEEN_ALL, round(took / MOST_OF_THE_TIME))
        else:
            gc.collect(OLDER if self._turns % TURNS_BETWEEN_OLDER == 0 else YOUNG)


def _give_back() -> None:
    with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)

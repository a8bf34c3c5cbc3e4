"""Whether the event loop turns, seen from another thread: it says in the log who holds it up.

Each quarter of a second the thread asks the loop for an answer. As long as none comes,
the loop stands. What counts is only time in which this process ran: one that was
suspended, or starved of its processor, does not blame its handlers.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from itertools import dropwhile
from pathlib import Path
from types import FrameType

import structlog

from broker_worker.failure import FIRST_FRAMES, LAST_FRAMES, MAX_TRACEBACK_BYTES, PACKAGE, clean

INTERVAL = timedelta(seconds=0.25)
REPORTED_AFTER = timedelta(seconds=1)
LOGGER = "broker_worker.watchdog"
ASYNCIO = str(Path(asyncio.__file__).parent)


class Watchdog:
    """Knows for how long a loop has stood; one line when that is a second, one when it turns again."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        process_time: Callable[[], float] = time.process_time,
    ) -> None:
        """Follow `configure`: a logger keeps the processors that it was made with."""
        self._log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(LOGGER).bind()
        self._monotonic = monotonic
        self._process_time = process_time
        self._standing = timedelta(0)
        self._has_answered = True
        self._is_reported = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def standing(self) -> timedelta:
        """For how long the loop has stood; nothing while it turns. To ask is safe in any thread."""
        return self._standing

    def start(self) -> None:
        """Watch the running loop from a daemon thread."""
        self.watch(asyncio.get_running_loop())
        self._thread = threading.Thread(target=self._run, name="broker-worker-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread before returning. Without `start`, nothing happens."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop that the calling thread runs."""
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._looked_at, self._spent = self._monotonic(), self._process_time()

    def look(self) -> None:
        """Take note how the loop stands, and ask it anew if it turns. The thread does it each `INTERVAL`."""
        passed = self._passed()
        if not self._has_answered:
            self._standing += passed
            if not self._is_reported and self._standing >= REPORTED_AFTER:
                self._is_reported = True
                self._report()
            return
        if self._is_reported:
            self._is_reported = False
            self._log.info("event loop turns again", stood_s=_seconds(self._standing + passed))
        self._standing = timedelta(0)
        self._ask()

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL.total_seconds()):
            self.look()

    def _passed(self) -> timedelta:
        """The time since the last look, without that in which the process did not run.

        A look that comes late was kept waiting by a suspension, by others on the machine, or by code
        that holds the interpreter's lock. Only the last of them spends our processor time.
        """
        looked_at, self._looked_at = self._looked_at, self._monotonic()
        spent, self._spent = self._spent, self._process_time()
        ran = max(timedelta(seconds=self._spent - spent), 2 * INTERVAL)
        return min(timedelta(seconds=self._looked_at - looked_at), ran)

    def _ask(self) -> None:
        assert self._loop is not None  # noqa: S101 - `watch` comes first
        self._has_answered = False
        with suppress(RuntimeError):  # it is closed: `stop` is on its way
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._has_answered = True

    def _report(self) -> None:
        """Name the asyncio task that runs; there is none where a callback does, or another thread's code."""
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented, in spite of its name
        self._log.warning(
            "event loop blocked",
            running=task.get_name() if task is not None else None,
            stood_s=_seconds(self._standing),
            stack=stack_of(frame) if frame is not None else None,
        )


def stack_of(frame: FrameType) -> str:
    """Write the stack that ends in `frame`, outermost first: the user's part of it, bounded, no locals."""
    frames = [
        traceback.FrameSummary(each.f_code.co_filename, line, each.f_code.co_name, lookup_line=False)
        for each, line in traceback.walk_stack(frame)
    ][::-1]
    shown = _users_part(frames)
    if len(shown) > FIRST_FRAMES + LAST_FRAMES:
        shown = [*shown[:FIRST_FRAMES], *shown[-LAST_FRAMES:]]
    return clean("".join(traceback.format_list(shown)).rstrip(), MAX_TRACEBACK_BYTES)


def _users_part(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Leave out what led to the loop, and what led from the loop to the user's code, if that is there."""
    frames = list(frames)
    in_loop = list(dropwhile(lambda each: not each.filename.startswith(ASYNCIO), frames)) or frames
    users = list(dropwhile(lambda each: each.filename.startswith((ASYNCIO, PACKAGE)), in_loop))
    return users or in_loop


def _seconds(span: timedelta) -> float:
    return round(span.total_seconds(), 2)

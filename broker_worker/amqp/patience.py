"""Try again for ever, with growing jittered pauses, and report a lasting fault once a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from broker_worker.cancellation import cancels
from broker_worker.errors import BrokerUnavailableError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds between tries: a broker that is back is noticed within them
SHORT_LIFE = 30.0  # seconds; what failed sooner than this pauses before it is tried again
REPORT_INTERVAL = 60.0  # seconds between reports of a fault that lasts


async def keep_up(live: Callable[[], Awaitable[None]], stopped: asyncio.Event) -> None:
    """Run `live` again whenever it raises BrokerUnavailableError, until it returns or `stopped` is set.

    At once where it lived for long, else after a pause. Other errors pass.
    """
    is_over = False
    while not is_over and not stopped.is_set():
        async for attempt in AsyncRetrying(
            wait=wait_random_exponential(min=FIRST_PAUSE, max=LONGEST_PAUSE),
            retry=retry_if_exception_type(BrokerUnavailableError),
            sleep=lambda seconds: _pause(seconds, stopped),
            reraise=True,
        ):
            with attempt:
                is_over = stopped.is_set() or await _one_life(live, stopped)


async def _one_life(live: Callable[[], Awaitable[None]], stopped: asyncio.Event) -> bool:
    """Say whether this was the last one; raise if it was too short to go on at once."""
    began = time.monotonic()
    cancels_before = cancels()
    try:
        await live()
    except BrokerUnavailableError as error:
        if cancels() > cancels_before:
            raise asyncio.CancelledError from error
        if stopped.is_set():
            return True
        if time.monotonic() - began < SHORT_LIFE:
            raise
        return False
    return True


async def _pause(seconds: float, stopped: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopped.wait()
    except TimeoutError:
        return


class Reports:
    """Says when a fault that lasts is worth another line: the first time, then once a minute."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._what: object = None

    def is_due(self, what: object = None) -> bool:
        """Ask before each report; `what` tells a fault of another kind, which is worth a line at once."""
        now = time.monotonic()
        if self._last is not None and what == self._what and now - self._last < REPORT_INTERVAL:
            return False
        self._last, self._what = now, what
        return True

    def clear(self) -> None:
        """Note that the fault is over."""
        self._last = None

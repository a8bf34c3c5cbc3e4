"""Time that passes only when everybody waits for it.

`VirtualLoop` is an event loop whose clock jumps to its next timer as soon as
nothing else is to be done: `asyncio.sleep`, `asyncio.timeout` and `call_later`
take no real time, and fire in their order.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

GLANCE = 0.02  # seconds of real time
BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)


class VirtualClock:
    """Satisfies `ports.Clock`: the time of the running event loop, which tests may also move by hand."""

    def __init__(self, beginning: datetime = BEGINNING) -> None:
        """Call it `beginning` when the event loop's own time is 0."""
        self._beginning = beginning
        self._jumped = 0.0

    def now(self) -> datetime:
        """The time of day, UTC."""
        return self._beginning + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Seconds since the beginning."""
        return asyncio.get_running_loop().time() + self._jumped

    async def sleep(self, seconds: float) -> None:
        """Wait; on a `VirtualLoop`, everything that is due meanwhile happens first."""
        await asyncio.sleep(seconds)

    def jump(self, by: timedelta) -> None:
        """Be later at once, as a process sees it that was paused: no timer fires for it."""
        self._jumped += by.total_seconds()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer when all wait.

    While a thread of an executor works, or a socket or pipe is open, time passes as it does
    for them: a jump would end their attempt by timeout before it began.
    """

    def __init__(self) -> None:
        self._virtual_now = 0.0
        self._holds = 0
        self._resting: list[asyncio.Future[float | None]] = []
        self._is_quiet: Callable[[], bool] = lambda: False
        self._jumping = _JumpingSelector(self)
        super().__init__(self._jumping)
        # a float of some months can't tell asyncio's own nanosecond apart: a timer would never be due
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds since this loop was made."""
        return self._virtual_now

    def pass_time(self, seconds: float) -> None:
        """Move the clock; timers that are due then fire in the next turn."""
        self._virtual_now += seconds

    @property
    def is_held(self) -> bool:
        """Whether something goes on, or may go on, that virtual time can't hurry."""
        return self._holds > 0 or (self._jumping.has_others and not self._is_quiet())

    async def rest(self) -> float | None:
        """Return when nothing is left to do at this moment: the seconds until the next timer, if any.

        Time passes only after it, so what is asked then is asked of a world at rest.
        """
        resting = self.create_future()
        self._resting.append(resting)
        seconds: float | None = await resting
        return seconds

    @property
    def has_resting(self) -> bool:
        """Whether anybody waits in `rest`."""
        return bool(self._resting)

    def tell_rest(self, seconds: float | None) -> bool:
        """Answer those who wait in `rest`; whether there were any."""
        resting, self._resting = [each for each in self._resting if not each.done()], []
        for each in resting:
            each.set_result(seconds)
        return bool(resting)

    @contextmanager
    def holding_time(self) -> Iterator[None]:
        """Let time pass as it does on the wall: for an end of a process, which a loop does not see coming."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    @contextmanager
    def jumping_when(self, is_quiet: Callable[[], bool]) -> Iterator[None]:
        """Let time jump in spite of open sockets, whenever `is_quiet` says that nobody waits for them."""
        before, self._is_quiet = self._is_quiet, is_quiet
        try:
            yield
        finally:
            self._is_quiet = before

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., Returned], *args: object
    ) -> asyncio.Future[Returned]:
        """Run `func` in a thread, in real time."""
        future = super().run_in_executor(executor, func, *args)
        self._holds += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _: object) -> None:
        self._holds -= 1


class _JumpingSelector(selectors.DefaultSelector):  # epoll on Linux
    """Where a loop would wait for its next timer, lets that time pass at once."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    @property
    def has_others(self) -> bool:
        """Whether anything is watched beside the loop's own way to be woken."""
        return len(self.get_map()) > 1

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        if ready := super().select(0):
            return ready
        if self._loop.is_held:
            return self._select_in_real_time(timeout)
        if self._loop.tell_rest(timeout):
            return []
        if timeout is None:
            return super().select(None)
        self._loop.pass_time(timeout)
        return []

    def _select_in_real_time(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        wait = timeout
        if self._loop.has_resting and (timeout is None or timeout > GLANCE):
            wait = GLANCE  # who waits for rest looks now and then, too: a thread may work until it is told
        began = time.monotonic()
        ready = super().select(wait)
        passed = time.monotonic() - began
        # without anything ready it is the timer's time, whatever the two clocks say
        is_due = timeout is not None and wait == timeout and not ready
        self._loop.pass_time(timeout if is_due and timeout else min(passed, timeout or passed))
        if not ready:
            self._loop.tell_rest(0.0)
        return ready


def in_virtual_time(
    function: Callable[Parameters, Coroutine[Any, Any, Returned]],
) -> Callable[Parameters, Returned]:
    """Make an async function a plain one that runs on a `VirtualLoop` of its own."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(function(*args, **kwargs))

    return run

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
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

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

    While a thread of an executor works, time passes as it does for the thread: a jump
    would end its attempt by timeout before it began.
    """

    def __init__(self) -> None:
        self._virtual_now = 0.0
        self._threads = 0
        super().__init__(_JumpingSelector(self))
        # a float of some months can't tell asyncio's own nanosecond apart: a timer would never be due
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds since this loop was made."""
        return self._virtual_now

    def pass_time(self, seconds: float) -> None:
        """Move the clock; timers that are due then fire in the next turn."""
        self._virtual_now += seconds

    @property
    def has_threads_at_work(self) -> bool:
        """Whether something runs that virtual time can't hurry."""
        return self._threads > 0

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., Returned], *args: object
    ) -> asyncio.Future[Returned]:
        """Run `func` in a thread, in real time."""
        future = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _: object) -> None:
        self._threads -= 1


class _JumpingSelector(selectors.DefaultSelector):  # epoll on Linux
    """Where a loop would wait for its next timer, lets that time pass at once."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if self._loop.has_threads_at_work:
            return self._select_in_real_time(timeout)
        ready = super().select(0)
        if not ready:
            self._loop.pass_time(timeout)
        return ready

    def _select_in_real_time(self, timeout: float) -> list[tuple[selectors.SelectorKey, int]]:
        began = time.monotonic()
        ready = super().select(timeout)
        self._loop.pass_time(min(time.monotonic() - began, timeout) if ready else timeout)
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

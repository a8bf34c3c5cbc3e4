"""An event loop in which nothing is left to chance, and in which several processes live.

Time is virtual: when nothing is ready, it jumps to the next timer. Whatever asyncio promises
holds here, too; what it leaves open (which of two timers that are due together comes first) is drawn.

Each callback belongs to the process in whose context it was made, or to none. Those of a process
that is dead never run: no `finally`, no handler, nothing. Those of one that is paused run when it
goes on, as after SIGSTOP and SIGCONT.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar
from random import Random
from typing import Any

from broker_worker.errors import BrokerWorkerError

SPREAD = 0.001  # seconds by which a timer may be late
LAST_TURNS = 200
GOES_ROUND = 300_000  # callbacks at one moment of time: nothing that ends needs as many


class StandstillError(BrokerWorkerError):
    """Nothing is ready and nothing will ever be, or time has ceased to pass."""


class Life:
    """Whether the callbacks of a process run."""

    def __init__(self) -> None:
        self.is_dead = False
        self.is_paused = False
        self.held: list[
            asyncio.Handle
        ] = []  # also what a dead one will never do: to be kept from the collector


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


class SimulationLoop(asyncio.BaseEventLoop):
    """Runs callbacks in an order that its seed decides."""

    # what BaseEventLoop has, and typeshed does not say
    _ready: Any
    _scheduled: list[Any]
    _stopping: bool

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._now = 0.0
        self._at_this_moment = 0
        self._clock_resolution = 1e-9
        self.tasks: list[asyncio.Task[Any]] = []  # kept: a task that is collected runs its `finally`
        self.ran = 0
        self._is_over = False

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call later than asked by a little, so that timers that are due together come in any order."""
        return super().call_at(when + self._random.random() * SPREAD, callback, *args, context=context)

    def create_task(  # type: ignore[override]  # likewise
        self,
        coro: Coroutine[Any, Any, Any],
        **options: Any,  # noqa: ANN401 - asyncio's, and they differ by version
    ) -> asyncio.Task[Any]:
        """Keep what is made."""
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        self.tasks.append(task)
        return task

    def resume(self, life: Life) -> None:
        """Let a process go on that was paused."""
        life.is_paused = False
        self._ready.extend(life.held)
        life.held = []

    def _run_once(self) -> None:
        self._pass_time()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            life: Life | None = handle._context.get(LIFE)
            if life is not None and not self._is_over and (life.is_dead or life.is_paused):
                life.held.append(handle)
                continue
            self.ran += 1
            self._at_this_moment += 1
            handle._run()
        if self._at_this_moment > GOES_ROUND:
            raise StandstillError(f"{GOES_ROUND} callbacks ran at {self._now:.3f} s")

    def _pass_time(self) -> None:
        """Make ready what is due; with nothing ready, jump to what is due next."""
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not self._ready and not self._stopping:
            if not scheduled:
                raise StandstillError(f"nothing is left to happen after {self._now:.3f} s")
            if scheduled[0]._when > self._now:
                self._now, self._at_this_moment = scheduled[0]._when, 0
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            self._ready.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave cancelled timers where they are: they are skipped when their time comes."""

    def _write_to_self(self) -> None:
        """Nobody sleeps: there is nobody to be woken."""

    def _process_events(self, event_list: object) -> None:
        """There are no events from outside."""

    # --- the end -------------------------------------------------------------------------

    def dispose(self, lives: Sequence[Life]) -> None:
        """End every task, so that none is left to the collector; what they still do reaches nobody.

        That is cleaning up after a simulation: the tasks of the dead run here as well.
        """
        self._is_over, self._at_this_moment = True, 0
        for handle in [*self._ready, *self._scheduled]:
            if handle._context.get(LIFE) is None:
                handle.cancel()
        for life in lives:
            self.resume(life)
        for _ in range(LAST_TURNS):
            left = [task for task in self.tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.sleep(10))
        self.tasks.clear()

"""Deletes what its retention says is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from broker_worker.events import Emit, ServiceWorked
from broker_worker.ports import Clock

INTERVAL = timedelta(minutes=1)
STATEMENTS = 500  # of each kind in one turn, 1000 rows each
# times as long as the statement took: deleting takes a tenth of a connection, and of a core at most
PAUSE = 9.0


class Pruned(Protocol):
    """What one statement did."""

    @property
    def count(self) -> int: ...

    @property
    def is_more(self) -> bool: ...


class Pruning(Protocol):
    """Bounded deletes, each of which goes on where the last one of its kind stopped."""

    async def prune_succeeded(self, *, older_than: timedelta) -> Pruned: ...

    async def prune_others(self, *, older_than: timedelta) -> Pruned: ...

    async def prune_payloads(self) -> Pruned: ...

    async def prune_checkpoints(self) -> Pruned: ...

    async def prune_letters(self, *, older_than: timedelta) -> Pruned: ...

    async def prune_workers(self) -> Pruned: ...


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things stay after their end; `None` is for ever."""

    succeeded: timedelta | None
    other: timedelta | None
    dead_letters: timedelta | None
    keeps_payloads: bool


class Pruner:
    """One turn deletes a bounded number of each kind; a backlog goes on in the next.

    It gives way to the work: after each statement it rests, the longer the busier the database is.
    """

    def __init__(self, pruning: Pruning, retention: Retention, *, clock: Clock, emit: Emit) -> None:
        self._pruning = pruning
        self._retention = retention
        self._clock = clock
        self._emit = emit

    async def run_once(self) -> None:
        """Prune tasks, bodies and checkpoints left behind, resolved dead letters, and the rows of workers."""
        await self._prune_aged("tasks", self._pruning.prune_succeeded, self._retention.succeeded)
        await self._prune_aged("tasks", self._pruning.prune_others, self._retention.other)
        if not self._retention.keeps_payloads:
            await self._prune("payloads", self._pruning.prune_payloads)
        await self._prune("checkpoints", self._pruning.prune_checkpoints)
        await self._prune_aged("dead_letters", self._pruning.prune_letters, self._retention.dead_letters)
        await self._prune("workers", self._pruning.prune_workers)

    async def _prune_aged(
        self, what: str, statement: Callable[..., Awaitable[Pruned]], age: timedelta | None
    ) -> None:
        if age is not None:
            await self._prune(what, lambda: statement(older_than=age))

    async def _prune(self, what: str, statement: Callable[[], Awaitable[Pruned]]) -> None:
        count = 0
        for _ in range(STATEMENTS):
            began = self._clock.monotonic()
            step = await statement()
            count += step.count
            if not step.is_more:
                break
            await self._clock.sleep((self._clock.monotonic() - began) * PAUSE)
        if count:
            self._emit(ServiceWorked("pruner", f"pruned_{what}", count))

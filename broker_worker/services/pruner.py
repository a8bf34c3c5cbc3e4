"""Deletes what its retention says is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from broker_worker.events import Emit, ServiceWorked

INTERVAL = timedelta(minutes=1)
STATEMENTS = 200  # of each kind in one turn, 1000 rows each: some 3000 rows a second at most


class Step(Protocol):
    """What one statement did."""

    @property
    def count(self) -> int: ...

    @property
    def is_more(self) -> bool: ...


class Pruning(Protocol):
    """Bounded deletes, each of which goes on where the last one of its kind stopped."""

    async def prune_tasks(self, *, succeeded: timedelta | None, other: timedelta | None) -> Step: ...

    async def prune_payloads(self) -> Step: ...

    async def prune_checkpoints(self) -> Step: ...

    async def prune_letters(self, *, older_than: timedelta) -> Step: ...

    async def prune_workers(self) -> Step: ...


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things stay after their end; `None` is for ever."""

    succeeded: timedelta | None
    other: timedelta | None
    dead_letters: timedelta | None
    keeps_payloads: bool


class Pruner:
    """One turn deletes a bounded number of each kind; a backlog goes on in the next."""

    def __init__(self, pruning: Pruning, retention: Retention, *, emit: Emit) -> None:
        self._pruning = pruning
        self._retention = retention
        self._emit = emit

    async def run_once(self) -> None:
        """Prune tasks, bodies and checkpoints left behind, answered dead letters, and the rows of workers."""
        retention = self._retention
        await self._prune(
            "tasks",
            lambda: self._pruning.prune_tasks(succeeded=retention.succeeded, other=retention.other),
        )
        if not retention.keeps_payloads:
            await self._prune("payloads", self._pruning.prune_payloads)
        await self._prune("checkpoints", self._pruning.prune_checkpoints)
        age = retention.dead_letters
        if age is not None:
            await self._prune("dead_letters", lambda: self._pruning.prune_letters(older_than=age))
        await self._prune("workers", self._pruning.prune_workers)

    async def _prune(self, what: str, statement: Callable[[], Awaitable[Step]]) -> None:
        count = 0
        for _ in range(STATEMENTS):
            step = await statement()
            count += step.count
            if not step.is_more:
                break
        if count:
            self._emit(ServiceWorked("pruner", f"pruned_{what}", count))

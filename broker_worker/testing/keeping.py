"""The tables in memory with what a test wants to see of them beside."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from broker_worker.context import Completion
from broker_worker.errors import ClaimLostError
from broker_worker.message import TaskId
from broker_worker.outcome import Failure, Succeeded
from broker_worker.outgoing import Owed
from broker_worker.ports import Clock
from broker_worker.step import Claim, Step
from broker_worker.task import TERMINAL
from broker_worker.testing.memory import MemoryStore
from broker_worker.testing.tables import MemoryDatabase


class HarnessDatabase(MemoryDatabase):
    """Remembers when a task ended, and with which error."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.finished_at: dict[TaskId, datetime] = {}
        self.failures: dict[TaskId, Failure] = {}

    def apply(self, step: Step, *, worker: UUID, result: str | None = None) -> list[Owed]:
        owed = super().apply(step, worker=worker, result=result)
        task = step.after
        self.finished_at.pop(task.id, None)
        if task.state in TERMINAL:
            self.finished_at[task.id] = self.clock.now()
            self.failures.pop(task.id, None)
        if step.failure is not None:
            self.failures[task.id] = step.failure
        return owed


class HarnessStore(MemoryStore):
    """What handlers ask for beside their outcome, kept in memory."""

    def __init__(
        self, database: HarnessDatabase, *, owed: Callable[[list[Owed]], None], **parts: object
    ) -> None:
        super().__init__(database, owed=owed, **parts)  # type: ignore[arg-type]  # the same as there
        self._completions: dict[tuple[int, int], str | None] = {}

    def check(self, claim: Claim) -> None:
        """Raise `ClaimLostError` where the attempt is over already."""
        if self._running(claim.key, claim.epoch) is None:
            raise ClaimLostError("the attempt is not this worker's any more")

    def report(self, claim: Claim, fraction: float, note: str) -> None:
        """Show progress at once; a real worker does within a second."""
        row = self._running(claim.key, claim.epoch)
        if row is not None:
            row.progress, row.progress_note = fraction, note or None

    def complete(self, claim: Claim, result: str | None) -> Completion:
        """Make a statement that any database runs, and take it as committed once the handler has returned."""
        self._completions[claim.key, claim.epoch] = result
        return Completion("SELECT %s, %s", (claim.key, claim.epoch))

    async def is_completed(self, claim: Claim) -> bool:
        if (claim.key, claim.epoch) in self._completions:
            await self.record(claim, Succeeded(self._completions[claim.key, claim.epoch]))
        return await super().is_completed(claim)

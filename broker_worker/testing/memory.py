"""The stores in memory: the same decisions and steps as in Postgres, without it.

Several workers share one `MemoryDatabase`, each through a `MemoryStore` of its own.
One event loop is the lock: no method waits halfway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from broker_worker.dead_letter import DeadLetter
from broker_worker.errors import ClaimLostError, DeclaredDeadError
from broker_worker.message import Message
from broker_worker.outcome import Outcome, Succeeded
from broker_worker.outgoing import Outgoing, Owed, copy_outgoing, event_outgoing
from broker_worker.ports import Beat, Delivery, Memory, Report
from broker_worker.sending import Sent, SentEvent, SentTask
from broker_worker.step import (
    Claim,
    Met,
    Step,
    conflict_letter,
    letter_of_conflict,
    new_row,
    step_of_decision,
    step_of_forgotten,
    step_of_loss,
    step_of_outcome,
    step_of_overdue,
    step_of_rescue,
    step_of_sending,
)
from broker_worker.task import (
    WAITING,
    Adopted,
    Arrival,
    Claimed,
    Decision,
    Holder,
    Resumed,
    Task,
    TaskState,
    meet,
)
from broker_worker.testing.tables import PROMPTNESS, MemoryDatabase, OutboxRow, TaskRow, WorkerRow

# The same as in store/, which this module must not import; the contract suites compare them.
UNSENT_PAUSE = timedelta(seconds=1)
LONGEST_PAUSE = timedelta(minutes=5)
BATCH = 200
OVERDUE = timedelta(minutes=10)
LONG_OVERDUE = timedelta(hours=6)
IDLE = timedelta(minutes=1)
FRESH_BEAT = timedelta(seconds=15)
FORGOTTEN = timedelta(seconds=45)
LOST = timedelta(hours=6)
DECIDED_AGAIN_AFTER = 0.05  # seconds


class MemoryStore:
    """One worker's view: satisfies `TaskStore`, `Checkpoints`, `Outbox`, `Workers` and `Rescues`.

    `write` and `requested` are what a `ProgressWriter` and `Cancels` ask for.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        *,
        worker: UUID,
        memory: Memory,
        owed: Callable[[list[Owed]], None],
        grace: timedelta,
        keeps_payloads: bool = False,  # as the setting
    ) -> None:
        self._database = database
        self._worker = worker
        self._memory = memory
        self._owed = owed
        self._grace = grace
        self._keeps_payloads = keeps_payloads

    # --- tasks -----------------------------------------------------------------------

    async def settled(self) -> None:
        """Every write here is done when it returns."""

    async def arrive(self, arrival: Arrival, delivery: Delivery) -> Met:
        while True:
            met = self._decide(arrival, delivery)
            if met is not None:
                return met
            await asyncio.sleep(DECIDED_AGAIN_AFTER)

    def _decide(self, arrival: Arrival, delivery: Delivery) -> Met | None:
        found = self._database.tasks.get(arrival.message.task)
        row = found.task if found else None
        decision = meet(
            row, arrival, holder=self._holder(row), now=self._database.clock.now(), grace=self._grace
        )
        step = step_of_decision(decision, row, arrival, worker=self._worker)
        if step is not None:
            self._apply(step)
            row = self._database.tasks[arrival.message.task].task
        if isinstance(decision, Resumed) and found is not None:
            found.started_at = self._database.clock.now()
        if (letter := conflict_letter(decision, row, arrival)) is not None:
            self._owed(self._database.keep(letter, worker=self._worker))
        return self._remember(decision, row or new_row(arrival), arrival, delivery)

    async def record(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        found = self._database.tasks.get(claim.row.id)
        if found is None:
            return None
        row = found.task
        if (row.key, row.epoch, row.worker) != (claim.key, claim.epoch, self._worker):
            return None
        if row.state is TaskState.SUCCEEDED:
            return Succeeded()
        if row.state is TaskState.RUNNING:  # else it is there already: an earlier try
            result = outcome.result if isinstance(outcome, Succeeded) else None
            self._apply(step_of_outcome(claim, outcome, row), result)
            if isinstance(outcome, Succeeded):
                found.message = claim.message if self._keeps_payloads else None
                for position, sent in enumerate(outcome.sent):
                    self._send(claim, sent, position)
        return outcome

    async def is_completed(self, claim: Claim) -> bool:
        found = self._database.tasks.get(claim.row.id)
        if found is None:
            return False
        row = found.task
        mine = (row.key, row.epoch, row.worker) == (claim.key, claim.epoch, self._worker)
        return mine and row.state is TaskState.SUCCEEDED

    def _send(self, claim: Claim, sent: Sent, position: int) -> None:
        match sent:
            case SentTask(message=message):
                found = self._database.tasks.get(message.task)
                if found is None:
                    self._apply(step_of_sending(sent, max_attempts=claim.row.max_attempts))
                elif found.task.digest != message.digest():
                    self._owed(self._database.keep(letter_of_conflict(message), worker=self._worker))
            case SentEvent():
                outgoing = event_outgoing(
                    sent, sender=claim.message, key=claim.key, epoch=claim.epoch, position=position
                )
                self._owed([self._database.owe(outgoing, worker=self._worker, task=claim.row)])

    async def bury(self, letter: DeadLetter, *, is_published: bool = False) -> None:
        self._owed(self._database.keep(letter, worker=self._worker, is_published=is_published))

    def _holder(self, row: Task | None) -> Holder:
        if row is None or row.state is not TaskState.RUNNING:
            return Holder.NOBODY
        if row.worker == self._worker:
            return self._memory.recall(row.key, row.epoch)
        return Holder.DEAD if self._database.is_dead(row.worker) else Holder.ELSEWHERE

    def _remember(self, decision: Decision, row: Task, arrival: Arrival, delivery: Delivery) -> Met | None:
        match decision:
            case Claimed() | Resumed():
                is_repeat = delivery.redelivered or row.attempt > 1 or isinstance(decision, Resumed)
                saved = self._database.tasks[row.id].checkpoint if row.epoch > 1 else None
                now = self._database.clock.now()
                left = row.deadline_at - now if row.deadline_at is not None else None
                claim = Claim(row, arrival.message, may_be_repeat=is_repeat, saved=saved, time_left=left)
                self._memory.remember(claim, delivery)
                return Met(decision, claim)
            case Adopted(epoch=epoch):
                if not self._memory.adopt(row.key, epoch, delivery):
                    return None
            case _:
                pass
        return Met(decision)

    def _apply(self, step: Step, result: str | None = None) -> None:
        self._owed(self._database.apply(step, worker=self._worker, result=result))

    # --- running attempts -------------------------------------------------------------

    async def save(self, claim: Claim, state: str) -> None:
        row = self._running(claim.key, claim.epoch)
        if row is None:
            raise ClaimLostError("the checkpoint was not saved: the attempt is not this worker's any more")
        row.checkpoint = state

    async def write(self, reports: Sequence[Report]) -> None:
        """Write how far attempts are; those that are over are left out."""
        for report in reports:
            row = self._running(report.key, report.epoch)
            if row is not None:
                row.progress, row.progress_note = report.fraction, report.note or None

    async def requested(self, claims: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Find those of `claims`, by key and epoch, that run here and are asked to end."""
        found = {claim: self._running(*claim) for claim in claims}
        return {claim for claim, row in found.items() if row is not None and row.task.is_cancel_requested}

    def _running(self, key: int, epoch: int) -> TaskRow | None:
        """Find a task by its claim, if that is still this worker's."""
        fence = (key, epoch, self._worker, TaskState.RUNNING)
        for row in self._database.tasks.values():
            if (row.task.key, row.task.epoch, row.task.worker, row.task.state) == fence:
                return row
        return None

    # --- outbox ----------------------------------------------------------------------

    async def take(self, limit: int) -> list[Owed]:
        now = self._database.clock.now()
        due = [
            (row.available_at, id_)
            for id_, row in self._database.outbox.items()
            if row.available_at <= now or (row.worker is not None and self._is_declared_dead(row.worker))
        ]
        taken = []
        for _, id_ in sorted(due)[:limit]:
            row = self._database.outbox[id_]
            row.worker, row.available_at = self._worker, now + PROMPTNESS
            outgoing = row.owed or self._current_copy(row, now)
            if outgoing is None:
                del self._database.outbox[id_]
            else:
                taken.append(Owed(id_, outgoing))
        return taken

    async def delete(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            self._database.outbox.pop(id_, None)

    async def put_back(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            row = self._database.outbox.get(id_)
            if row is None:
                continue
            pause = min(timedelta(seconds=1 << min(row.failures, 10)), LONGEST_PAUSE)
            row.worker, row.available_at = None, self._database.clock.now() + pause
            row.failures += 1

    async def return_unsent(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            row = self._database.outbox.get(id_)
            if row is not None:
                row.worker, row.available_at = None, self._database.clock.now() + UNSENT_PAUSE

    def _is_declared_dead(self, worker: UUID) -> bool:
        return worker in self._database.workers and self._database.is_dead(worker)

    def _current_copy(self, row: OutboxRow, now: datetime) -> Outgoing | None:
        """Build a copy from its task; nothing where the task has moved on."""
        found = self._database.tasks.get(row.task) if row.task else None
        if found is None or found.message is None:
            return None
        if found.task.epoch != row.epoch or found.task.state not in WAITING:
            return None
        delay = max(row.deliver_at - now, timedelta(0))
        return copy_outgoing(found.message, epoch=row.epoch, attempt=found.task.attempt, delay=delay)

    # --- workers ---------------------------------------------------------------------

    async def register(self) -> None:
        """Write this worker's row; nothing may be claimed before."""
        self._database.workers.setdefault(self._worker, WorkerRow(self._database.clock.now()))

    async def beat(self, idle: Mapping[str, float]) -> list[Beat]:
        if self._database.is_dead(self._worker):
            raise DeclaredDeadError("another worker declared this one dead: its heartbeat had stood still")
        mine = self._database.workers[self._worker]
        mine.beat, mine.beat_at, mine.idle = mine.beat + 1, self._database.clock.now(), dict(idle)
        return [Beat(id_, row.beat) for id_, row in self._database.workers.items() if row.dead_at is None]

    async def declare_dead(self, beat: Beat) -> bool:
        row = self._database.workers.get(beat.worker)
        if row is None or row.dead_at is not None or row.beat != beat.beat:
            return False
        row.dead_at = self._database.clock.now()
        return True

    async def leave(self) -> None:
        """Say that this worker is dead: its clean exit."""
        row = self._database.workers[self._worker]
        row.dead_at = row.dead_at or self._database.clock.now()

    # --- rescues ---------------------------------------------------------------------

    async def rescue(self) -> int:
        return self._each(
            lambda row: (
                row.task.state is TaskState.RUNNING
                and row.task.worker is not None
                and self._is_declared_dead(row.task.worker)
            ),
            step_of_rescue,
        )

    async def reemit_overdue(self) -> int:
        return self._each(self._is_overdue, step_of_overdue)

    async def release_forgotten(self, known: Collection[int]) -> int:
        latest_start = self._database.clock.now() - FORGOTTEN
        return self._each(
            lambda row: (
                row.task.state is TaskState.RUNNING
                and row.task.worker == self._worker
                and row.started_at is not None
                and row.started_at < latest_start
                and row.task.key not in known
            ),
            step_of_forgotten,
        )

    async def bury_lost(self) -> int:
        long_ago = self._database.clock.now() - LOST
        gone = {
            id_
            for id_, row in self._database.workers.items()
            if row.dead_at is not None and row.dead_at < long_ago and not row.is_swept
        }
        lost = [
            row.task
            for row in self._database.tasks.values()
            if row.task.worker in gone and row.task.state is TaskState.RUNNING and not row.task.has_body
        ][:BATCH]
        for task in lost:
            self._apply(step_of_loss(task))
        for worker in gone if len(lost) < BATCH else ():
            self._database.workers[worker].is_swept = True
        return len(lost)

    def _is_overdue(self, row: TaskRow) -> bool:
        if row.due_at is None or row.task.state not in WAITING:
            return False
        if any(owed.task == row.task.id for owed in self._database.outbox.values()):
            return False
        late = (self._database.clock.now() - row.due_at) / (1 << min(row.task.reemissions, 10))
        return late > LONG_OVERDUE or (late > OVERDUE and self._has_room(row.task.id.queue))

    def _has_room(self, queue: str) -> bool:
        now = self._database.clock.now()
        return any(
            row.idle.get(queue, 0) >= IDLE.total_seconds()
            for row in self._database.workers.values()
            if row.dead_at is None and row.beat_at > now - FRESH_BEAT
        )

    def _each(self, is_such: Callable[[TaskRow], bool], step_of: Callable[[Task, Message], Step]) -> int:
        """Take the same step with a bounded number of the tasks whose body is here."""
        rows = [row for row in self._database.tasks.values() if row.message is not None and is_such(row)]
        for row in rows[:BATCH]:
            assert row.message is not None  # noqa: S101 - asked above
            self._apply(step_of(row.task, row.message))
        return len(rows[:BATCH])

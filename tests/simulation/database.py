"""The tables in memory, with a trigger that keeps their history."""

from __future__ import annotations

import hashlib
from typing import Literal
from uuid import UUID

from broker_worker.dead_letter import LETTER_ID, DeadLetter
from broker_worker.message import TaskId, from_record
from broker_worker.outgoing import EVENT_ID, Kind, Outgoing, Owed
from broker_worker.step import Step, step_of_replay
from broker_worker.task import Task, TaskState
from broker_worker.testing.tables import OPERATOR, MemoryDatabase, OutboxRow, WorkerRow
from tests.faults.records import (
    AttemptChange,
    Change,
    FinalLetter,
    FinalOutbox,
    FinalTask,
    LetterChange,
    OutboxChange,
    Record,
    TaskChange,
    WorkerChange,
)
from tests.simulation.world import World


class SimulatedDatabase(MemoryDatabase):
    """Everything that is committed is recorded."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self.outbox = RecordedOutbox(self)
        self.resolutions: dict[UUID, str] = {}
        self.xid = 0
        self.actor = ""
        self.is_unheard = False  # nobody hears what is decided in this transaction
        self._world = world

    def begin(self, actor: str, *, is_unheard: bool = False) -> None:
        """Begin a transaction: all until the next one is of one commit."""
        self.xid = self._world.next_commit()
        self.actor = actor
        self.is_unheard = is_unheard

    def tell(self, record: Record) -> None:
        if isinstance(record, Change):
            record.xid, record.actor = self.xid, self.actor
            record.committed_at = self._world.clock.timestamp()
        self._world.tell(record)

    # --- what workers do ---------------------------------------------------------------

    def apply(self, step: Step, *, worker: UUID, result: str | None = None) -> list[Owed]:
        records = set(self.tasks[step.after.id].records) if step.after.id in self.tasks else set()
        owed = super().apply(step, worker=worker, result=result)
        row = self.tasks[step.after.id]
        if step.before != row.task:
            self.tell(_change(step.before, row.task))
            self._world.progressed()
        for epoch, record in row.records.items():
            if epoch not in records:
                self.tell(
                    AttemptChange(
                        key=row.task.key,
                        epoch=epoch,
                        attempt=record.attempt,
                        worker=str(record.worker or ""),
                        outcome=record.outcome,
                    )
                )
        return owed

    def keep(self, letter: DeadLetter, *, worker: UUID, is_published: bool = False) -> list[Owed]:
        is_new = letter.id not in self.letters
        if letter.id in self.resolutions:  # resolved before, and here again: open it
            del self.resolutions[letter.id]
            del self.letters[letter.id]
            self.tell(self._letter_change("update", letter))
        elif is_new:
            self.tell(self._letter_change("insert", letter))
        return super().keep(letter, worker=worker, is_published=is_published)

    def register(self, worker: UUID, name: str) -> None:
        if worker not in self.workers:
            self.workers[worker] = WorkerRow(self.clock.now())
            self.tell(WorkerChange(op="insert", worker=str(worker), host=name))

    def note_end(self, worker: UUID, how: Literal["dead", "left"]) -> None:
        self.tell(WorkerChange(op=how, worker=str(worker), beat_at=self.workers[worker].beat_at.timestamp()))

    # --- what operators do -------------------------------------------------------------

    def replay(self, letter: DeadLetter) -> bool:
        """Send a dead task on its way again, as `Desk.replay` does: once for each letter."""
        row = next((row for row in self.tasks.values() if row.task.key == letter.task_key), None)
        if row is None or row.task.state is not TaskState.DEAD or letter.id in self.resolutions:
            return False
        message = from_record(row.task.id, letter.body, letter.record, epoch=letter.epoch)
        for owed in self.apply(step_of_replay(row.task, message), worker=OPERATOR):
            free = self.outbox[owed.id]
            free.worker, free.available_at = None, self.clock.now()
        self.resolutions[letter.id] = "replayed"
        self.tell(self._letter_change("update", letter))
        return True

    # --- the end -------------------------------------------------------------------------

    def tell_all(self) -> None:
        """Record every table as it is."""
        for row in self.tasks.values():
            task = row.task
            self.tell(
                FinalTask(
                    key=task.key,
                    queue=task.id.queue,
                    name=task.id.name,
                    id=task.id.id,
                    digest=task.digest.hex(),
                    state=str(task.state),
                    attempt=task.attempt,
                    max_attempts=task.max_attempts,
                    epoch=task.epoch,
                    interruptions=task.interruptions,
                    has_body=task.has_body,
                    worker=str(task.worker or ""),
                    reason=str(task.reason or ""),
                )
            )
        for letter in self.letters.values():
            self.tell(
                FinalLetter(
                    letter=str(letter.id),
                    key=letter.task_key or 0,
                    queue=letter.queue,
                    name=letter.name or "",
                    id=letter.message_id or "",
                    reason=str(letter.reason),
                    resolution=self.resolutions.get(letter.id, ""),
                    body=hashlib.sha256(letter.body).hexdigest(),
                )
            )
        for number, owed in self.outbox.items():
            self.tell(
                FinalOutbox(number=number, kind=_kind(owed), key=self.key_of(owed.task), epoch=owed.epoch)
            )

    def key_of(self, task: TaskId | None) -> int:
        return self.tasks[task].task.key if task is not None and task in self.tasks else 0

    def key_of_letter(self, letter: object) -> int:
        found = self.letters.get(UUID(letter)) if isinstance(letter, str) else None
        return found.task_key or 0 if found is not None else 0

    def _letter_change(self, op: str, letter: DeadLetter) -> LetterChange:
        return LetterChange(
            op=op,  # type: ignore[arg-type]  # one of two
            letter=str(letter.id),
            key=letter.task_key or 0,
            queue=letter.queue,
            name=letter.name or "",
            id=letter.message_id or "",
            reason=str(letter.reason),
            resolution=self.resolutions.get(letter.id, ""),
            body=hashlib.sha256(letter.body).hexdigest(),
        )


class RecordedOutbox(dict[int, OutboxRow]):
    """The table `outbox`: what is written and what is deleted is recorded."""

    def __init__(self, database: SimulatedDatabase) -> None:
        super().__init__()
        self._database = database

    def __setitem__(self, number: int, row: OutboxRow) -> None:
        super().__setitem__(number, row)
        self._tell("insert", number, row)

    def __delitem__(self, number: int) -> None:
        self._tell("delete", number, self[number])
        super().__delitem__(number)

    def pop(self, number: int, default: object = None) -> OutboxRow | None:  # type: ignore[override]
        if number not in self:
            return None
        row = self[number]
        del self[number]
        return row

    def _tell(self, op: str, number: int, row: OutboxRow) -> None:
        properties = row.owed.properties if row.owed is not None else None
        headers = properties.headers if properties is not None else {}
        self._database.tell(
            OutboxChange(
                op=op,  # type: ignore[arg-type]  # one of two
                number=number,
                kind=_kind(row),
                key=self._database.key_of(row.task) or self._database.key_of_letter(headers.get(LETTER_ID)),
                epoch=row.epoch,
                letter=str(headers.get(LETTER_ID, "")),
                event=str(headers.get(EVENT_ID, "")),
                routing_key=_routing_key(row),
                failures=row.failures,
            )
        )


def _kind(row: OutboxRow) -> str:
    return str(row.owed.kind if row.owed is not None else Kind.COPY)


def _routing_key(row: OutboxRow) -> str:
    owed: Outgoing | None = row.owed
    if owed is not None:
        return owed.routing_key
    return row.task.queue if row.task is not None else ""


def _change(before: Task | None, after: Task) -> TaskChange:
    return TaskChange(
        key=after.key,
        queue=after.id.queue,
        name=after.id.name,
        id=after.id.id,
        digest=after.digest.hex(),
        old_state=str(before.state) if before else "",
        new_state=str(after.state),
        old_epoch=before.epoch if before else 0,
        new_epoch=after.epoch,
        old_attempt=before.attempt if before else 0,
        new_attempt=after.attempt,
        old_worker=str(before.worker or "") if before else "",
        new_worker=str(after.worker or ""),
        old_body=before.has_body if before else False,
        new_body=after.has_body,
        interruptions=after.interruptions,
        max_attempts=after.max_attempts,
        reason=str(after.reason or ""),
        is_cancel_requested=after.is_cancel_requested,
        reply_to=after.reply_to or "",
    )

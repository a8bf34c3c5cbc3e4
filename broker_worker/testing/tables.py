"""The tables of Postgres in memory, and the writing of steps into them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from broker_worker.dead_letter import DeadLetter, letter_outgoing
from broker_worker.message import Message, TaskId
from broker_worker.outgoing import LONGEST_RUNG, Kind, Outgoing, Owed, copy_outgoing
from broker_worker.ports import Clock
from broker_worker.reply import reply_outgoing
from broker_worker.step import AttemptRecord, Step, step_of_cancel
from broker_worker.task import TERMINAL, Task, TaskState

# as in store/, which this package must not import: the contract suites compare
PROMPTNESS = timedelta(minutes=2)
OPERATOR = UUID(int=0)  # no worker


@dataclass(slots=True)
class TaskRow:
    """A task, and what of its row no decision needs."""

    task: Task
    due_at: datetime | None = None
    started_at: datetime | None = None
    result: str | None = None
    message: Message | None = None  # its row in `payloads`
    records: dict[int, AttemptRecord] = field(default_factory=dict)  # by epoch
    checkpoint: str | None = None  # its row in `checkpoints`
    progress: float | None = None
    progress_note: str | None = None


@dataclass(slots=True)
class OutboxRow:
    """One message owed; a copy is built from its task when it is taken."""

    owed: Outgoing | None
    task: TaskId | None
    epoch: int
    worker: UUID | None
    deliver_at: datetime
    available_at: datetime
    failures: int = 0


@dataclass(slots=True)
class WorkerRow:
    """One worker."""

    beat_at: datetime
    beat: int = 0
    idle: Mapping[str, float] = field(default_factory=dict)
    dead_at: datetime | None = None
    is_swept: bool = False


class MemoryDatabase:
    """The tables."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tasks: dict[TaskId, TaskRow] = {}
        self.letters: dict[UUID, DeadLetter] = {}
        self.outbox: dict[int, OutboxRow] = {}
        self.workers: dict[UUID, WorkerRow] = {}
        self._keys = itertools.count(1)
        self._ids = itertools.count(1)

    def is_dead(self, worker: UUID | None) -> bool:
        """Whether nobody can be waiting for this worker: declared dead, or never registered."""
        row = self.workers.get(worker) if worker is not None else None
        return row is None or row.dead_at is not None

    def apply(self, step: Step, *, worker: UUID, result: str | None = None) -> list[Owed]:
        """Write a step with all it owes; answer with what the worker may publish at once."""
        if step.before is None:
            key = next(self._keys)
            letter = replace(step.letter, task_key=key) if step.letter else None
            step = replace(step, after=replace(step.after, key=key), letter=letter)
        row = self.tasks.setdefault(step.after.id, TaskRow(step.after))
        self._write(row, step, result)
        owed = [self._owe_copy(step, worker)] if step.copy is not None else []
        if step.letter is not None:
            owed += self.keep(step.letter, worker=worker)
        if step.after.reply_to is not None and step.after.state in TERMINAL and step.before != step.after:
            reply = reply_outgoing(step.after, failure=step.failure, result=result)
            owed.append(self.owe(reply, worker=worker, task=step.after))
        return [one for one in owed if one is not None]

    def cancel(self, task: TaskId) -> None:
        """Cancel a task as an operator does: at once where it waits, asked for where it runs."""
        row = self.tasks[task].task
        if row.state in TERMINAL:
            return
        for owed in self.apply(step_of_cancel(row), worker=OPERATOR):
            free = self.outbox[owed.id]
            free.worker, free.available_at = None, self.clock.now()  # for any worker to publish

    def keep(self, letter: DeadLetter, *, worker: UUID, is_published: bool = False) -> list[Owed]:
        """Keep a dead letter; one that is there already stays as it is and owes nothing again."""
        if letter.id in self.letters:
            return []
        self.letters[letter.id] = letter
        if is_published:
            return []
        outgoing = letter_outgoing(letter, worker=str(worker), failed_at=self.clock.now())
        return [self.owe(outgoing, worker=worker)]

    def owe(self, outgoing: Outgoing, *, worker: UUID, task: Task | None = None) -> Owed:
        """Write a row of the outbox that `worker` has to itself for a while."""
        id_ = next(self._ids)
        now = self.clock.now()
        self.outbox[id_] = OutboxRow(
            owed=outgoing if outgoing.kind is not Kind.COPY else None,
            task=task.id if task else None,
            epoch=task.epoch if task else 0,
            worker=worker,
            deliver_at=now + outgoing.delay,
            available_at=now + PROMPTNESS,
        )
        return Owed(id_, outgoing)

    def _write(self, row: TaskRow, step: Step, result: str | None) -> None:
        now, before, after = self.clock.now(), step.before, step.after
        is_moved = before is None or before.state != after.state or before.epoch != after.epoch
        if is_moved:
            row.due_at = now + step.due_in if step.due_in is not None else None
        if after.state is TaskState.RUNNING and (before is None or before.epoch != after.epoch):
            row.started_at, row.progress, row.progress_note = now, None, None
        had_body = before is not None and before.has_body
        if after.has_body and not had_body:
            row.message = step.message
        if had_body and not after.has_body:
            row.message = None
        if step.record is not None:
            row.records.setdefault(step.record.epoch, step.record)
        row.task = after
        row.result = result if result is not None else row.result

    def _owe_copy(self, step: Step, worker: UUID) -> Owed | None:
        assert step.copy is not None  # noqa: S101 - the caller saw to it
        assert step.message is not None  # noqa: S101 - who owes a copy has the message
        delay, after = step.copy.delay, step.after
        owed = self.owe(
            copy_outgoing(step.message, epoch=after.epoch, attempt=after.attempt, delay=delay),
            worker=worker,
            task=after,
        )
        if not step.copy.is_exact and delay <= LONGEST_RUNG:
            return owed
        row = self.outbox[owed.id]  # waits here until it is due
        row.worker, row.available_at = None, row.deliver_at
        return None

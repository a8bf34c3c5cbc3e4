"""What a delivery meets: its row, the decision under the row's lock, and all that follows, in one commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.message import TaskId
from broker_worker.outgoing import Owed
from broker_worker.ports import Delivery, Memory
from broker_worker.step import Claim, Met, conflict_letter, new_row, step_of_decision
from broker_worker.store.apply import apply, insert_letters, insert_outbox, letter_row, storable
from broker_worker.store.checkpoints import load_checkpoints
from broker_worker.store.database import Database
from broker_worker.store.later_claims import LaterClaims, may_claim_later
from broker_worker.store.rows import COLUMNS, to_task
from broker_worker.task import (
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
from broker_worker.values import dataclass

Value = TypeVar("Value")
FIRST, RUNNING = Claimed(attempt=1, epoch=1), TaskState.RUNNING


@dataclass(frozen=True, slots=True)
class Coming:
    """A delivery on its way to its row."""

    arrival: Arrival
    delivery: Delivery


class Arrivals:
    """Decides batches of deliveries; each task is in a batch at most once."""

    def __init__(
        self,
        database: Database,
        *,
        worker: UUID,
        memory: Memory,
        owed: Callable[[list[Owed]], None],
        grace: timedelta,
    ) -> None:
        self._database = database
        self._schema = database.schema
        self._worker = worker
        self._memory = memory
        self._owed = owed
        self._grace = grace
        self._claiming = _claiming(database.schema)
        self._later_claims = LaterClaims(database, worker=worker)

    async def commit(self, batch: Sequence[Coming]) -> list[Met | None]:
        """Claim new tasks in one statement, waiting ones in another; decide the rest under their rows' locks.

        Memory is told last: if a later commit fails, every writer of the batch is told so and
        comes again, and a claim of an earlier one that memory knew would then look like a run that goes on.
        """
        fresh = [coming for coming in batch if _is_plainly_new(coming.arrival)]
        claimed = await self._claim_new(fresh) if fresh else {}
        rest = [coming for coming in batch if coming.arrival.message.task not in claimed]
        claimed_again = await self._later_claims.claim(
            [coming.arrival for coming in rest if may_claim_later(coming.arrival)]
        )
        rest = [coming for coming in rest if coming.arrival.message.task not in claimed_again]
        met = await self._decide(rest) if rest else {}
        for coming in fresh:
            task = coming.arrival.message.task
            if task in claimed:
                key, deadline_at = claimed[task]
                row = _first_row(coming.arrival, key, self._worker, deadline_at=deadline_at)
                left = coming.arrival.deadline
                met[task] = self._remember(FIRST, row, coming, time_left=left)
        for coming in batch:
            if (again := claimed_again.get(coming.arrival.message.task)) is not None:
                row = again.row
                decision = Claimed(row.attempt, row.epoch)
                met[row.id] = self._remember(decision, row, coming, saved=again.saved)
        return [met.get(coming.arrival.message.task) for coming in batch]

    async def _claim_new(self, batch: Sequence[Coming]) -> dict[TaskId, tuple[int, datetime | None]]:
        """Insert the rows that are not there yet, as claims of their first attempt; keys and deadlines."""
        batch = sorted(batch, key=lambda coming: coming.arrival.message.task)  # one lock order for all
        arrivals = [coming.arrival for coming in batch]
        rows = await self._database.single(
            self._claiming,
            {
                "worker": self._worker,
                "queues": [arrival.message.task.queue for arrival in arrivals],
                "names": [arrival.message.task.name for arrival in arrivals],
                "ids": [arrival.message.task.id for arrival in arrivals],
                "digests": [arrival.digest for arrival in arrivals],
                "max_attempts": [arrival.max_attempts for arrival in arrivals],
                "producers": _rare([storable(arrival.message.app_id) for arrival in arrivals]),
                "correlation_ids": _rare([storable(arrival.message.correlation_id) for arrival in arrivals]),
                "reply_tos": _rare(
                    [arrival.message.reply_to if arrival.keeps_reply else None for arrival in arrivals]
                ),
                "published_at": _rare([arrival.message.published_at for arrival in arrivals]),
                "not_after": _rare([arrival.message.not_after for arrival in arrivals]),
                "deadlines": _rare([arrival.deadline for arrival in arrivals]),
            },
        )
        return {TaskId(queue, name, id_): (key, deadline) for key, queue, name, id_, deadline in rows}

    async def _decide(self, batch: Sequence[Coming]) -> dict[TaskId, Met | None]:
        """Lock the rows that are there, decide each delivery, and write it all in one transaction.

        A row that another transaction holds is left out: it is decided again.
        """
        decided: list[tuple[Coming, Decision, Task | None]] = []
        async with self._database.transaction() as connection:
            now: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
            rows = await self._lock(connection, batch)
            for coming in batch:
                task = coming.arrival.message.task
                if task not in rows:
                    continue
                row, holder = rows[task]
                decision = meet(row, coming.arrival, holder=holder, now=now, grace=self._grace)
                decided.append((coming, decision, row))
            owed, written = await self._write_decisions(connection, decided)
            later_runs = [
                after.key
                for _, decision, after in written
                if isinstance(decision, Claimed | Resumed) and after.epoch > 1
            ]
            saved = await load_checkpoints(connection, self._schema, later_runs)
        self._owed(owed)
        return {
            coming.arrival.message.task: self._remember(
                decision,
                after,
                coming,
                saved=saved.get(after.key),
                time_left=after.deadline_at - now if after.deadline_at is not None else None,
            )
            for coming, decision, after in written
        }

    async def _write_decisions(
        self, connection: AsyncConnection, decided: Sequence[tuple[Coming, Decision, Task | None]]
    ) -> tuple[list[Owed], list[tuple[Coming, Decision, Task]]]:
        """Write every decision; answer with the rows after it, without those that lost a race."""
        steps, letters = [], []
        after_by_task: dict[TaskId, Task] = {}
        for coming, decision, row in decided:
            arrival = coming.arrival
            step = step_of_decision(decision, row, arrival, worker=self._worker)
            if step is not None:
                steps.append(step)
            if step is None or row is not None:
                after_by_task[arrival.message.task] = step.after if step else row or new_row(arrival)
            if (letter := conflict_letter(decision, row, arrival)) is not None:
                letters.append(letter)
        applied = await apply(connection, self._schema, steps, worker=self._worker)
        await self._refresh(
            connection, [row.key for _, decision, row in decided if row and isinstance(decision, Resumed)]
        )
        new = await insert_letters(connection, self._schema, letters, worker=self._worker)
        rows = [
            letter_row(letter, self._worker) for letter in letters if letter.id in new and letter.is_published
        ]
        owed = applied.owed + await insert_outbox(connection, self._schema, rows, worker=self._worker)
        after_by_task |= applied.created
        return owed, [
            (coming, decision, after_by_task[coming.arrival.message.task])
            for coming, decision, _ in decided
            if coming.arrival.message.task in after_by_task
        ]

    async def _refresh(self, connection: AsyncConnection, keys: Sequence[int]) -> None:
        """Date resumed runs anew, so that the heartbeat does not take them for forgotten ones."""
        if keys:
            await connection.execute(
                text(f"""
                    UPDATE {self._schema}.tasks SET started_at = now()
                    WHERE key = ANY(CAST(:keys AS bigint[]))"""),
                {"keys": list(keys)},
            )

    async def _lock(
        self, connection: AsyncConnection, batch: Sequence[Coming]
    ) -> dict[TaskId, tuple[Task | None, Holder]]:
        """Lock the rows of a batch, in one order; those that are locked elsewhere are left out."""
        tasks = [coming.arrival.message.task for coming in batch]
        identities = {
            "queues": [task.queue for task in tasks],
            "names": [task.name for task in tasks],
            "ids": [task.id for task in tasks],
        }
        wanted = """FROM unnest(CAST(:queues AS text[]), CAST(:names AS text[]), CAST(:ids AS text[]))
                      AS n(queue, name, message_id)"""
        joined = f"JOIN {self._schema}.tasks t USING (queue, name, message_id)"
        locked = await connection.execute(
            text(f"""
                SELECT {COLUMNS}, w.id IS NULL OR w.dead_at IS NOT NULL AS is_holder_dead
                {wanted} {joined} LEFT JOIN {self._schema}.workers w ON w.id = t.worker
                ORDER BY t.key FOR UPDATE OF t SKIP LOCKED"""),
            identities,
        )
        found: dict[TaskId, tuple[Task | None, Holder]] = {}
        for row in locked:
            task = to_task(row)
            found[task.id] = (task, self._holder(task, is_holder_dead=row.is_holder_dead))
        if len(found) < len(tasks):
            existing = await connection.execute(
                text(f"SELECT t.queue, t.name, t.message_id {wanted} {joined}"), identities
            )
            there = {TaskId(row.queue, row.name, row.message_id) for row in existing}
            found |= {task: (None, Holder.NOBODY) for task in tasks if task not in there}
        return found

    def _holder(self, task: Task, *, is_holder_dead: bool) -> Holder:
        if task.state is not TaskState.RUNNING:
            return Holder.NOBODY
        if task.worker == self._worker:
            return self._memory.recall(task.key, task.epoch)
        return Holder.DEAD if is_holder_dead else Holder.ELSEWHERE

    def _remember(
        self,
        decision: Decision,
        after: Task,
        coming: Coming,
        *,
        saved: str | None = None,
        time_left: timedelta | None = None,
    ) -> Met | None:
        """Tell memory before anything else can happen to this task in this process.

        Nothing where a run ended while it was decided that a delivery joins it: decide again.
        """
        match decision:
            case Claimed() | Resumed():
                is_repeat = coming.delivery.redelivered or after.attempt > 1 or isinstance(decision, Resumed)
                message = coming.arrival.message
                claim = Claim(after, message, may_be_repeat=is_repeat, saved=saved, time_left=time_left)
                self._memory.remember(claim, coming.delivery)
                return Met(decision, claim)
            case Adopted(epoch=epoch):
                if not self._memory.adopt(after.key, epoch, coming.delivery):
                    return None
            case _:
                pass
        return Met(decision)


def _claiming(schema: str) -> TextClause:
    """Build the statement that makes the rows of new tasks, as claims of their first attempt."""
    return text(f"""
        INSERT INTO {schema}.tasks (queue, name, message_id, digest, state, attempt,
          max_attempts, epoch, worker, started_at, producer, correlation_id, reply_to,
          published_at, not_after, deadline_at)
        SELECT n.queue, n.name, n.id, n.digest, 'running', 1, n.max_attempts, 1, :worker, now(),
          n.producer, n.correlation_id, n.reply_to, n.published_at, n.not_after,
          now() + n.deadline
        FROM unnest(
          CAST(:queues AS text[]), CAST(:names AS text[]), CAST(:ids AS text[]),
          CAST(:digests AS bytea[]), CAST(:max_attempts AS smallint[]),
          CAST(:producers AS text[]), CAST(:correlation_ids AS text[]),
          CAST(:reply_tos AS text[]), CAST(:published_at AS timestamptz[]),
          CAST(:not_after AS timestamptz[]), CAST(:deadlines AS interval[])
        ) AS n(queue, name, id, digest, max_attempts, producer, correlation_id, reply_to,
               published_at, not_after, deadline)
        ON CONFLICT (queue, name, message_id) DO NOTHING
        RETURNING key, queue, name, message_id, deadline_at""")


def _rare(column: list[Value | None]) -> list[Value | None]:
    """Leave a column without any value away: `unnest` fills it with nulls, and none has to be encoded."""
    return column if any(value is not None for value in column) else []


def _is_plainly_new(arrival: Arrival) -> bool:
    """Whether nothing but an existing row could keep this from being claimed at once."""
    message = arrival.message
    return (
        message.epoch == 0
        and arrival.has_slot
        and arrival.refusal is None
        and arrival.poisoning is None
        and message.deliver_at is None
        and message.not_after is None  # the database's clock decides that
    )


def _first_row(arrival: Arrival, key: int, worker: UUID, *, deadline_at: datetime | None) -> Task:
    message = arrival.message
    return Task(
        key=key,
        id=message.task,
        state=RUNNING,
        attempt=1,
        max_attempts=arrival.max_attempts,
        epoch=1,
        worker=worker,
        digest=arrival.digest,
        not_after=message.not_after,
        deadline_at=deadline_at,
        reply_to=message.reply_to if arrival.keeps_reply else None,
        correlation_id=message.correlation_id,
    )

"""Tasks that nobody holds: under dead workers, overdue, forgotten, lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.message import Message
from broker_worker.outgoing import Owed
from broker_worker.step import Step, step_of_forgotten, step_of_loss, step_of_overdue, step_of_rescue
from broker_worker.store.apply import apply
from broker_worker.store.database import Database
from broker_worker.store.rows import COLUMNS, to_message, to_task
from broker_worker.task import Task

BATCH = 200  # rows of one turn; the next turn takes the next ones
WINDOW = 100_000  # keys that one turn looks through for lost tasks, in about a tenth of a second
OVERDUE = timedelta(minutes=10)  # with a consumer that had room: the copy should have come
LONG_OVERDUE = timedelta(hours=6)  # whatever the consumers say
IDLE = timedelta(minutes=1)  # how long a consumer has to have had room
FORGOTTEN = timedelta(seconds=45)  # longer than any claim can be on its way to our memory
LOST = timedelta(hours=6)


class RescueStore:
    """Each turn takes a bounded batch and leaves rows that others hold locked to them."""

    def __init__(self, database: Database, *, worker: UUID, owed: Callable[[list[Owed]], None]) -> None:
        self._database = database
        self._schema = database.schema
        self._worker = worker
        self._owed = owed

    async def rescue(self) -> int:
        """Re-emit what runs under dead workers and has its body here. Returns how many."""
        return await self._each(
            f"""
            SELECT {COLUMNS}, p.body, p.properties FROM {self._schema}.tasks t
            JOIN {self._schema}.workers w ON w.id = t.worker AND w.dead_at IS NOT NULL
            JOIN {self._schema}.payloads p ON p.task_key = t.key
            WHERE t.has_body AND t.due_at IS NULL AND t.state = 'running'
            ORDER BY t.key LIMIT {BATCH} FOR UPDATE OF t SKIP LOCKED""",
            {},
            step_of_rescue,
        )

    async def reemit_overdue(self) -> int:
        """Send waiting tasks again whose copy should have come long ago. Returns how many.

        During a backlog nothing is sent again: only a queue whose consumer had room, with
        the task overdue all the while, can be said to hold no copy.
        """
        return await self._each(
            f"""
            WITH roomy AS (
              SELECT i.key AS queue, max(i.value::float) AS seconds
              FROM {self._schema}.workers w, json_each_text(w.idle) i
              WHERE w.dead_at IS NULL AND w.beat_at > now() - interval '15 s' GROUP BY i.key
            )
            SELECT {COLUMNS}, p.body, p.properties FROM {self._schema}.tasks t
            JOIN {self._schema}.payloads p ON p.task_key = t.key
            LEFT JOIN roomy r ON r.queue = t.queue
            WHERE t.due_at IS NOT NULL AND t.state IN ('queued', 'retrying') AND (
                (t.due_at < now() - CAST(:overdue AS interval) * (1 << least(t.reemissions, 10))
                 AND r.seconds >= :idle)
                OR t.due_at < now() - CAST(:long_overdue AS interval) * (1 << least(t.reemissions, 10)))
              AND NOT EXISTS (SELECT 1 FROM {self._schema}.outbox o WHERE o.task_key = t.key)
            ORDER BY t.due_at LIMIT {BATCH} FOR UPDATE OF t SKIP LOCKED""",
            {"overdue": OVERDUE, "long_overdue": LONG_OVERDUE, "idle": IDLE.total_seconds()},
            step_of_overdue,
        )

    async def release_forgotten(self, known: Collection[int]) -> int:
        """Release what runs under our own id, has its body here, and is not in `known`. Returns how many."""
        return await self._each(
            f"""
            SELECT {COLUMNS}, p.body, p.properties FROM {self._schema}.tasks t
            JOIN {self._schema}.payloads p ON p.task_key = t.key
            WHERE t.worker = :worker AND t.has_body AND t.due_at IS NULL AND t.state = 'running'
              AND t.started_at < now() - CAST(:forgotten AS interval)
              AND t.key <> ALL(CAST(:known AS bigint[]))
            ORDER BY t.key LIMIT {BATCH} FOR UPDATE OF t SKIP LOCKED""",
            {"worker": self._worker, "forgotten": FORGOTTEN, "known": list(known)},
            step_of_forgotten,
        )

    async def bury_lost(self) -> int:
        """End what runs under workers dead for hours without a body: no message will come. Returns how many.

        No index knows these tasks, since none is touched by a success: the whole table is walked
        for each dead worker, a window in each turn of whoever is free. The row says how far.
        Those who are furthest go on together; whoever died since begins when they have arrived,
        or a fleet that loses workers all the time would never come to the end of a large table.
        """
        async with self._database.transaction() as connection:
            gone = await connection.execute(
                text(f"""
                    SELECT id, swept_to FROM {self._schema}.workers
                    WHERE dead_at < now() - CAST(:lost AS interval) AND swept_at IS NULL
                    ORDER BY swept_to DESC LIMIT 50 FOR UPDATE SKIP LOCKED"""),
                {"lost": LOST},
            )
            swept_to = [(row.id, row.swept_to) for row in gone]
            if not swept_to:
                return 0
            after = swept_to[0][1]
            workers = [worker for worker, reached in swept_to if reached == after]
            low, high, newest = await self._window(connection, after=after)
            rows = await connection.execute(
                text(f"""
                    SELECT {COLUMNS} FROM {self._schema}.tasks t
                    WHERE t.key BETWEEN :low AND :high AND t.worker = ANY(CAST(:workers AS uuid[]))
                      AND t.state = 'running' AND NOT t.has_body
                    ORDER BY t.key LIMIT {BATCH} FOR UPDATE OF t SKIP LOCKED"""),
                {"low": low, "high": high, "workers": workers},
            )
            steps = [step_of_loss(to_task(row)) for row in rows]
            owed = await self._apply(connection, steps)
            reached = steps[-1].after.key if len(steps) == BATCH else high
            await connection.execute(
                text(f"""
                    UPDATE {self._schema}.workers
                    SET swept_to = :reached, swept_at = CASE WHEN :is_done THEN now() END
                    WHERE id = ANY(CAST(:workers AS uuid[]))"""),
                {"reached": reached, "is_done": reached >= newest, "workers": workers},
            )
        self._owed(owed)
        return len(steps)

    async def _window(self, connection: AsyncConnection, *, after: int) -> tuple[int, int, int]:
        """Choose the keys to look at next, the first and the last; and say what the newest key is."""
        rows = await connection.execute(
            text(f"""
                SELECT (SELECT min(key) FROM {self._schema}.tasks WHERE key > :after) AS low,
                  (SELECT max(key) FROM {self._schema}.tasks) AS newest"""),
            {"after": after},
        )
        row = rows.one()
        low = after + 1 if row.low is None else int(row.low)
        newest = after if row.newest is None else max(int(row.newest), after)
        return low, min(low + WINDOW - 1, newest), newest

    async def _each(
        self, query: str, values: dict[str, Any], step_of: Callable[[Task, Message], Step]
    ) -> int:
        """Lock what `query` finds and take the same step with all of it, in one commit."""
        async with self._database.transaction() as connection:
            rows = (await connection.execute(text(query), values)).all()
            owed = await self._apply(connection, [_step(row, step_of) for row in rows])
        self._owed(owed)
        return len(rows)

    async def _apply(self, connection: AsyncConnection, steps: Sequence[Step]) -> list[Owed]:
        if not steps:
            return []
        return (await apply(connection, self._schema, steps, worker=self._worker)).owed


def _step(row: Row[Any], step_of: Callable[[Task, Message], Step]) -> Step:
    task = to_task(row)
    return step_of(task, to_message(task, row.body, row.properties))

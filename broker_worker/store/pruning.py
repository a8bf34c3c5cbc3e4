"""Retention: what is over is deleted, a bounded number of rows at a time.

Finished rows have no index by age, since the success path touches no indexed column.
Keys are given in the order of creation, though, and nothing is finished before it is
created: so each kind of row is walked in key order, `WINDOW` rows a statement, from
where the last statement stopped. A walk of tasks ends at the first window that is too
young to hold anything; what is kept on its way is all that is looked at in vain.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import text

from broker_worker.store.database import Database

WINDOW = 1000  # rows that one statement looks at, and at most deletes
WORKERS_KEPT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one statement did. `is_more`: the walk goes on from where it stopped."""

    count: int
    is_more: bool


class PruningStore:
    """Remembers where each walk stands; a new process begins at the start."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._schema = database.schema
        self._task = 0
        self._payload = 0
        self._checkpoint = 0
        self._letter = UUID(int=0)

    async def prune_tasks(self, *, succeeded: timedelta | None, other: timedelta | None) -> Pruned:
        """Delete tasks that finished longer ago than `succeeded`, or `other` for other ends; `None` keeps.

        Never an unfinished one, one with an open dead letter, or one that still owes a message.
        """
        ages = [age for age in (succeeded, other) if age is not None]
        if not ages:
            return Pruned(0, is_more=False)
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    WITH walked AS MATERIALIZED (
                      SELECT key, created_at FROM {self._schema}.tasks
                      WHERE key > :after ORDER BY key LIMIT {WINDOW}
                    ), over AS MATERIALIZED (
                      SELECT t.key FROM walked JOIN {self._schema}.tasks t USING (key)
                      WHERE (t.state = 'succeeded' AND t.finished_at < now() - CAST(:succeeded AS interval)
                          OR t.state IN ('dead', 'cancelled', 'expired')
                            AND t.finished_at < now() - CAST(:other AS interval))
                        AND NOT EXISTS (SELECT 1 FROM {self._schema}.dead_letters d
                                        WHERE d.task_key = t.key AND d.resolved_at IS NULL)
                        AND NOT EXISTS (SELECT 1 FROM {self._schema}.outbox o WHERE o.task_key = t.key)
                      FOR UPDATE OF t SKIP LOCKED
                    ), gone AS (
                      DELETE FROM {self._schema}.tasks t USING over WHERE t.key = over.key RETURNING t.key
                    )
                    SELECT (SELECT count(*) FROM gone) AS deleted, count(*) AS walked, max(key) AS last,
                      coalesce(max(created_at) >= now() - CAST(:youngest AS interval), true) AS is_at_end
                    FROM walked"""),
                {"after": self._task, "succeeded": succeeded, "other": other, "youngest": min(ages)},
            )
            row = rows.one()
        is_more = row.walked == WINDOW and not row.is_at_end
        self._task = row.last if is_more else 0
        return Pruned(row.deleted, is_more)

    async def prune_payloads(self) -> Pruned:
        """Delete the bodies of finished tasks, from a time when those were kept."""
        pruned, self._payload = await self._prune_beside_tasks(
            "payloads", after=self._payload, states="'succeeded', 'dead', 'cancelled', 'expired'"
        )
        return pruned

    async def prune_checkpoints(self) -> Pruned:
        """Delete what attempts have saved for a next one that will not be; a dead task can be replayed."""
        pruned, self._checkpoint = await self._prune_beside_tasks(
            "checkpoints", after=self._checkpoint, states="'succeeded', 'cancelled', 'expired'"
        )
        return pruned

    async def _prune_beside_tasks(self, table: str, *, after: int, states: str) -> tuple[Pruned, int]:
        """Delete rows of a table that tasks in `states` have; and where the next statement begins."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    WITH walked AS MATERIALIZED (
                      SELECT task_key FROM {self._schema}.{table}
                      WHERE task_key > :after ORDER BY task_key LIMIT {WINDOW}
                    ), over AS MATERIALIZED (
                      SELECT t.key FROM walked JOIN {self._schema}.tasks t ON t.key = walked.task_key
                      WHERE t.state IN ({states})
                      FOR UPDATE OF t SKIP LOCKED
                    ), gone AS (
                      DELETE FROM {self._schema}.{table} r USING over WHERE r.task_key = over.key
                      RETURNING r.task_key
                    )
                    SELECT (SELECT count(*) FROM gone) AS deleted, count(*) AS walked, max(task_key) AS last
                    FROM walked"""),
                {"after": after},
            )
            row = rows.one()
        is_more = row.walked == WINDOW
        return Pruned(row.deleted, is_more), row.last if is_more else 0

    async def prune_letters(self, *, older_than: timedelta) -> Pruned:
        """Delete dead letters that were replayed or discarded longer ago, and owe no message any more."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    WITH walked AS MATERIALIZED (
                      SELECT id FROM {self._schema}.dead_letters WHERE id > :after ORDER BY id LIMIT {WINDOW}
                    ), over AS MATERIALIZED (
                      SELECT d.id FROM walked JOIN {self._schema}.dead_letters d USING (id)
                      WHERE d.resolved_at < now() - CAST(:age AS interval)
                        AND NOT EXISTS (SELECT 1 FROM {self._schema}.outbox o WHERE o.dead_letter = d.id)
                      FOR UPDATE OF d SKIP LOCKED
                    ), gone AS (
                      DELETE FROM {self._schema}.dead_letters d USING over WHERE d.id = over.id RETURNING d.id
                    )
                    SELECT (SELECT count(*) FROM gone) AS deleted, count(*) AS walked,
                      (SELECT id FROM walked ORDER BY id DESC LIMIT 1) AS last
                    FROM walked"""),
                {"after": self._letter, "age": older_than},
            )
            row = rows.one()
        is_more = row.walked == WINDOW
        self._letter = row.last if is_more else UUID(int=0)
        return Pruned(row.deleted, is_more)

    async def prune_workers(self) -> Pruned:
        """Delete the rows of workers that are dead for a week and that no running task refers to.

        Once a dead worker was swept, what runs under it has its body, and an index of its own.
        """
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    DELETE FROM {self._schema}.workers WHERE id IN (
                      SELECT w.id FROM {self._schema}.workers w
                      WHERE w.dead_at < now() - CAST(:kept AS interval) AND w.swept_at IS NOT NULL
                        AND NOT EXISTS (SELECT 1 FROM {self._schema}.tasks t
                          WHERE t.worker = w.id AND t.has_body AND t.due_at IS NULL AND t.state = 'running')
                      LIMIT {WINDOW} FOR UPDATE OF w SKIP LOCKED)
                    RETURNING id"""),
                {"kept": WORKERS_KEPT},
            )
            count = len(rows.all())
        return Pruned(count, is_more=count == WINDOW)

"""Retention: what is over is deleted, a bounded number of rows at a time.

Succeeded rows have no index by age, since the success path touches no indexed column.
Keys are given in the order of creation, though, and nothing is finished before it is
created: so rows are walked in key order, `WINDOW` rows a statement, from where the last
statement stopped, up to the first window that is too young to hold anything. The next
walk of succeeded tasks goes on from there; each `THOROUGH`th begins at the start, for what
ended late, was locked or still owed a message. Other ends are few and have an index.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text

from broker_worker.store.database import Database

WINDOW = 1000  # rows that one statement looks at, and at most deletes
THOROUGH = 60  # walks of succeeded tasks until one begins at the start; about an hour
OTHER_ENDS = ("dead", "cancelled", "expired")
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
        self._succeeded = 0
        self._walks = 0  # of succeeded tasks that came to their end
        self._other = (OTHER_ENDS[0], 0)  # the state that is walked, and the last key
        self._payload = 0
        self._checkpoint = 0

    async def prune_succeeded(self, *, older_than: timedelta) -> Pruned:
        """Delete tasks that succeeded longer ago than `older_than`, but none that still owes a message."""
        pruned, last = await self._prune_tasks(
            "key > :after", state="succeeded", after=self._succeeded, age=older_than
        )
        if pruned.is_more:
            self._succeeded = last
        else:
            self._walks += 1
            if self._walks % THOROUGH == 0:
                self._succeeded = 0
        return pruned

    async def prune_others(self, *, older_than: timedelta) -> Pruned:
        """Delete tasks that ended otherwise longer ago than `older_than`.

        Never one with an open dead letter, or one that still owes a message. One state after the other.
        """
        state, after = self._other
        pruned, last = await self._prune_tasks(
            "other_state = :state AND key > :after", state=state, after=after, age=older_than
        )
        if pruned.is_more:
            self._other = (state, last)
            return pruned
        number = (OTHER_ENDS.index(state) + 1) % len(OTHER_ENDS)
        self._other = (OTHER_ENDS[number], 0)
        return Pruned(pruned.count, is_more=number > 0)

    async def _prune_tasks(self, where: str, *, state: str, after: int, age: timedelta) -> tuple[Pruned, int]:
        """Look at the next window of a walk; and the key where it ends."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    WITH walked AS MATERIALIZED (
                      SELECT key, created_at FROM {self._schema}.tasks
                      WHERE {where} ORDER BY key LIMIT {WINDOW}
                    ), over AS MATERIALIZED (
                      SELECT t.key FROM walked JOIN {self._schema}.tasks t USING (key)
                      WHERE t.state = :state AND t.finished_at < now() - CAST(:age AS interval)
                        AND NOT EXISTS (SELECT 1 FROM {self._schema}.dead_letters d
                                        WHERE d.task_key = t.key AND d.resolved_at IS NULL)
                        AND NOT EXISTS (SELECT 1 FROM {self._schema}.outbox o WHERE o.task_key = t.key)
                      FOR UPDATE OF t SKIP LOCKED
                    ), gone AS (
                      DELETE FROM {self._schema}.tasks t USING over WHERE t.key = over.key RETURNING t.key
                    )
                    SELECT (SELECT count(*) FROM gone) AS deleted, count(*) AS walked, max(key) AS last,
                      coalesce(max(created_at) >= now() - CAST(:age AS interval), true) AS is_at_end
                    FROM walked"""),
                {"after": after, "state": state, "age": age},
            )
            row = rows.one()
        return Pruned(row.deleted, is_more=row.walked == WINDOW and not row.is_at_end), row.last

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
                    DELETE FROM {self._schema}.dead_letters WHERE id IN (
                      SELECT d.id FROM {self._schema}.dead_letters d
                      WHERE d.resolved_at < now() - CAST(:age AS interval)
                        AND NOT EXISTS (SELECT 1 FROM {self._schema}.outbox o WHERE o.dead_letter = d.id)
                      ORDER BY d.resolved_at LIMIT {WINDOW} FOR UPDATE OF d SKIP LOCKED)
                    RETURNING id"""),
                {"age": older_than},
            )
            count = len(rows.all())
        return Pruned(count, is_more=count == WINDOW)

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

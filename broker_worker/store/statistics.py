"""Numbers over tasks, dead letters and the outbox, for people and for /metrics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text

from broker_worker.store.database import Database
from broker_worker.store.queries import DISORDER, key_at
from broker_worker.task import TaskState

STATES = tuple(str(state) for state in TaskState)
DAY = timedelta(hours=24)
MAX_COUNTED = 500_000  # newest tasks that `stats` looks at; it takes some seconds


@dataclass(frozen=True, slots=True)
class TaskStats:
    """One task name in one queue; durations are of the last attempt, in seconds."""

    queue: str
    name: str
    queued: int
    running: int
    retrying: int
    succeeded: int
    dead: int
    cancelled: int
    expired: int
    failure_rate: float | None  # dead of those that succeeded or died
    duration_p50: float | None
    duration_p95: float | None
    duration_max: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """All of them. `is_partial`: there were too many, and only the newest were counted."""

    rows: list[TaskStats]
    is_partial: bool


@dataclass(frozen=True, slots=True)
class OpenLetters:
    """How many dead letters wait for a person."""

    queue: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class OutboxGauge:
    """What is owed: all of it, and how long the oldest row that is due has been due, in seconds."""

    size: int
    oldest_due_age: float


async def stats(database: Database, *, since: timedelta = DAY) -> Stats:
    """Count the tasks created within `since`, and all that wait, by queue and name.

    The newest are taken by key alone: with both conditions Postgres expects too few, and may read all of a
    large table.
    """
    async with database.transaction() as connection:
        now: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
        low = await key_at(connection, database.schema, now - since - DISORDER)
        counts = ", ".join(f"count(*) FILTER (WHERE state = '{state}') AS {state}" for state in STATES)
        duration = "extract(epoch FROM finished_at - started_at)"
        rows = await connection.execute(
            text(f"""
                SELECT queue, name, {", ".join(STATES)}, failure_rate,
                  durations[1], durations[2], duration_max
                FROM (SELECT queue, name, {counts},
                  count(*) FILTER (WHERE state = 'dead')::float
                    / nullif(count(*) FILTER (WHERE state IN ('dead', 'succeeded')), 0) AS failure_rate,
                  percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY {duration})::float[] AS durations,
                  max({duration})::float AS duration_max
                FROM (
                  SELECT queue, name, state, started_at, finished_at FROM (
                    SELECT * FROM {database.schema}.tasks
                    WHERE key >= :low ORDER BY key DESC LIMIT {MAX_COUNTED}) newest
                  WHERE created_at >= now() - CAST(:since AS interval)
                  UNION ALL
                  SELECT queue, name, state, NULL, NULL FROM {database.schema}.tasks
                  WHERE due_at IS NOT NULL AND state IN ('queued', 'retrying')
                    AND created_at < now() - CAST(:since AS interval)
                ) t
                GROUP BY queue, name) grouped ORDER BY queue, name"""),
            {"low": low, "since": since},
        )
        found = [TaskStats(*row) for row in rows]
    return Stats(found, is_partial=sum(_total(each) for each in found) >= MAX_COUNTED)


async def open_letters(database: Database) -> list[OpenLetters]:
    """Count open dead letters by queue and reason."""
    async with database.transaction() as connection:
        rows = await connection.execute(
            text(f"""
                SELECT queue, reason, count(*) FROM {database.schema}.dead_letters
                WHERE resolved_at IS NULL GROUP BY queue, reason ORDER BY queue, reason""")
        )
        return [OpenLetters(*row) for row in rows]


async def outbox_gauge(database: Database) -> OutboxGauge:
    """Measure the outbox."""
    async with database.transaction() as connection:
        rows = await connection.execute(
            text(f"""
                SELECT count(*) AS size, coalesce(extract(epoch FROM
                  now() - min(deliver_at) FILTER (WHERE deliver_at <= now())), 0)::float AS oldest_due_age
                FROM {database.schema}.outbox""")
        )
        row = rows.one()
        return OutboxGauge(row.size, row.oldest_due_age)


async def oldest_waiting(database: Database) -> dict[str, timedelta]:
    """For each queue with tasks that wait: how long the one that was due first has been due."""
    async with database.transaction() as connection:
        rows = await connection.execute(
            text(f"""
                SELECT queue, greatest(now() - min(due_at), interval '0') AS age
                FROM {database.schema}.tasks WHERE due_at IS NOT NULL AND state IN ('queued', 'retrying')
                GROUP BY queue""")
        )
        return {row.queue: row.age for row in rows}


def _total(row: TaskStats) -> int:
    return sum((row.queued, row.running, row.retrying, row.succeeded, row.dead, row.cancelled, row.expired))

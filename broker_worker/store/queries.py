"""Tasks as people look at them. Every query is bounded, however many rows there are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.store.database import Database

MAX_PAGE = 1000
DISORDER = timedelta(minutes=1)  # by how much keys and creation times may disagree: longer than a transaction

TASK_COLUMNS = (
    "t.key, t.queue, t.name, t.message_id, t.state, t.attempt, t.max_attempts, t.epoch, t.worker, t.reason, "
    "t.error_type, t.error_message, t.is_cancel_requested, t.producer, t.correlation_id, t.published_at, "
    "t.created_at, t.started_at, t.finished_at, t.due_at, t.not_after, "
    "t.progress, t.progress_note"
)
PROGRESS_DIGITS = 6
# the few (queue, name) pairs that there are are found by jumping through the index of identities
PAIRS = """WITH RECURSIVE pairs AS (
  (SELECT queue, name FROM {schema}.tasks ORDER BY queue, name LIMIT 1)
  UNION ALL
  SELECT n.queue, n.name FROM pairs p CROSS JOIN LATERAL (
    SELECT t.queue, t.name FROM {schema}.tasks t
    WHERE (t.queue, t.name) > (p.queue, p.name) ORDER BY t.queue, t.name LIMIT 1) n
)"""
PAIR_CONDITIONS = """(CAST(:queue AS text) IS NULL OR pairs.queue = :queue)
  AND (CAST(:name AS text) IS NULL OR pairs.name = :name)"""


@dataclass(frozen=True, slots=True)
class TaskLookup:
    """A task as a person names it: by its id, and by more where that is not enough."""

    id: str
    queue: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        where = f" in queue {self.queue!r}" if self.queue else ""
        what = f" named {self.name!r}" if self.name else ""
        return f"with id {self.id!r}{where}{what}"


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task in a list."""

    key: int
    queue: str
    name: str
    id: str
    state: str
    attempt: int
    max_attempts: int
    epoch: int
    worker: UUID | None
    reason: str | None
    error_type: str | None
    error_message: str | None
    is_cancel_requested: bool
    producer: str | None
    correlation_id: str | None
    published_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None
    not_after: datetime | None
    progress: float | None  # 0 to 1, as its handler said last
    progress_note: str | None


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """One attempt that did not succeed."""

    attempt: int
    epoch: int
    worker: UUID | None
    outcome: str
    error_type: str | None
    error_message: str | None
    traceback: str | None
    started_at: datetime | None
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class OwedSummary:
    """A message of a task that the broker has not confirmed yet."""

    kind: str
    routing_key: str
    deliver_at: datetime
    failures: int


@dataclass(frozen=True, slots=True)
class LetterSummary:
    """A dead letter of a task."""

    id: UUID
    reason: str
    error_type: str
    error_message: str
    attempt: int
    failed_at: datetime
    resolution: str | None
    resolved_at: datetime | None


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """One task and all that hangs on it."""

    task: TaskSummary
    result: object  # as JSON
    has_payload: bool
    attempts: list[AttemptSummary]
    owed: list[OwedSummary]
    dead_letters: list[LetterSummary]


async def show_task(database: Database, lookup: TaskLookup) -> list[TaskDetail]:
    """Show every task with this id; several where queues or task names differ."""
    async with database.transaction() as connection:
        keys = await find_keys(connection, database.schema, lookup)
        return [
            detail
            for key in keys[:MAX_PAGE]
            if (detail := await _detail(connection, database.schema, key)) is not None
        ]


async def find_keys(connection: AsyncConnection, schema: str, lookup: TaskLookup) -> list[int]:
    """Find tasks by message id, which is the last column of its index."""
    rows = await connection.execute(
        text(f"""
            {PAIRS.format(schema=schema)}
            SELECT n.key FROM pairs CROSS JOIN LATERAL (
              SELECT t.key FROM {schema}.tasks t
              WHERE t.queue = pairs.queue AND t.name = pairs.name AND t.message_id = :id LIMIT 1) n
            WHERE {PAIR_CONDITIONS}
            ORDER BY n.key"""),
        {"id": lookup.id, "queue": lookup.queue, "name": lookup.name},
    )
    return [row.key for row in rows]


async def key_at(connection: AsyncConnection, schema: str, moment: datetime) -> int:
    """Find the first key of about `moment`, by bisection: keys are given in the order of creation."""
    bounds = (
        await connection.execute(
            text(
                f"SELECT coalesce(min(key), 1) AS low, coalesce(max(key), 0) + 1 AS high FROM {schema}.tasks"
            )
        )
    ).one()
    low, high = int(bounds.low), int(bounds.high)
    probe = text(f"SELECT key, created_at FROM {schema}.tasks WHERE key >= :key ORDER BY key LIMIT 1")
    while low < high:
        middle = (low + high) // 2
        row = (await connection.execute(probe, {"key": middle})).first()
        if row is None or row.created_at >= moment:
            high = middle
        else:
            low = int(row.key) + 1
    return low


async def _detail(connection: AsyncConnection, schema: str, key: int) -> TaskDetail | None:
    values = {"key": key}

    async def rows(query: str) -> list[Row[Any]]:
        return list((await connection.execute(text(query), values)).all())

    found = await rows(f"""
        SELECT {TASK_COLUMNS}, CAST(t.result AS text) AS result,
          EXISTS (SELECT 1 FROM {schema}.payloads p WHERE p.task_key = t.key) AS has_payload
        FROM {schema}.tasks t WHERE t.key = :key""")
    if not found:
        return None
    attempts = await rows(f"""
        SELECT attempt, epoch, worker, outcome, error_type, error_message, traceback, started_at, ended_at
        FROM {schema}.attempts WHERE task_key = :key ORDER BY epoch DESC LIMIT {MAX_PAGE}""")
    owed = await rows(f"""
        SELECT kind, routing_key, deliver_at, failures
        FROM {schema}.outbox WHERE task_key = :key ORDER BY id LIMIT {MAX_PAGE}""")
    letters = await rows(f"""
        SELECT id, reason, error_type, error_message, attempt, failed_at, resolution, resolved_at
        FROM {schema}.dead_letters WHERE task_key = :key ORDER BY failed_at LIMIT {MAX_PAGE}""")
    return TaskDetail(
        task=to_summary(found[0]),
        result=_json(found[0].result),
        has_payload=found[0].has_payload,
        attempts=[AttemptSummary(*tuple(row)) for row in reversed(attempts)],
        owed=[OwedSummary(*tuple(row)) for row in owed],
        dead_letters=[LetterSummary(*tuple(row)) for row in letters],
    )


def to_summary(row: Row[Any]) -> TaskSummary:
    """Read a row that was selected with `TASK_COLUMNS`."""
    return TaskSummary(
        key=row.key,
        queue=row.queue,
        name=row.name,
        id=row.message_id,
        state=row.state,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        epoch=row.epoch,
        worker=row.worker,
        reason=row.reason,
        error_type=row.error_type,
        error_message=row.error_message,
        is_cancel_requested=row.is_cancel_requested,
        producer=row.producer,
        correlation_id=row.correlation_id,
        published_at=row.published_at,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        due_at=row.due_at,
        not_after=row.not_after,
        progress=to_progress(row.progress),
        progress_note=row.progress_note,
    )


def to_progress(value: float | None) -> float | None:
    """Read how far an attempt is as it was given: a Postgres `real` holds six digits."""
    return None if value is None else round(value, PROGRESS_DIGITS)


def page_size(limit: int) -> int:
    """Bound the number of rows that one query may be asked for."""
    return min(max(limit, 1), MAX_PAGE)


def _json(value: object) -> object:
    """Read a json column that was asked for as text: the driver would decode it, a string result too."""
    return json.loads(value) if isinstance(value, str) else value

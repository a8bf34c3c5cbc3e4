"""Where one task stands, for programs that ask about it and wait for its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.message import TaskId
from broker_worker.store.database import Database
from broker_worker.store.interventions import AmbiguousTaskError
from broker_worker.store.queries import TaskLookup, find_keys, to_progress
from broker_worker.task import TERMINAL, TaskState

_ENDS = ", ".join(f"'{state}'" for state in sorted(TERMINAL))


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """One task as its row shows it. Times are of the database's clock."""

    id: str
    name: str
    queue: str
    state: TaskState
    attempt: int  # 0 before the first
    max_attempts: int
    result: Any = field(repr=False)  # what the handler returned, as JSON has it
    reason: str | None  # why it died, or waits
    error_type: str | None
    error_message: str | None
    progress: float | None  # 0 to 1, as its handler said last
    progress_note: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    is_cancel_requested: bool

    @property
    def has_ended(self) -> bool:
        """Whether it has succeeded, died, expired or been cancelled."""
        return self.state in TERMINAL

    @property
    def has_succeeded(self) -> bool:
        return self.state is TaskState.SUCCEEDED


@dataclass(frozen=True, slots=True)
class Found:
    """A task and its row's key, by which notifications name it."""

    key: int
    status: TaskStatus


async def find_task(database: Database, lookup: TaskLookup, *, awaits: bool = False) -> Found | None:
    """Look where a task stands; nothing where none is known. With `awaits` its end will be notified.

    Raises:
        AmbiguousTaskError: there are several.
    """
    async with database.transaction() as connection:
        keys = await find_keys(connection, database.schema, lookup)
        if awaits and len(keys) == 1:
            await _await_end(connection, database.schema, keys)
        rows = await connection.execute(
            text(f"""
                SELECT key, message_id, name, queue, state, attempt, max_attempts,
                  CAST(result AS text) AS result, reason, error_type, error_message, progress, progress_note,
                  created_at, started_at, finished_at, is_cancel_requested
                FROM {database.schema}.tasks
                WHERE key = ANY(CAST(:keys AS bigint[])) ORDER BY key LIMIT 10"""),
            {"keys": keys},
        )
        found = [Found(row.key, _status(row)) for row in rows]
    if len(found) > 1:
        tasks = [TaskId(each.status.queue, each.status.name, each.status.id) for each in found]
        raise AmbiguousTaskError(lookup, tasks)
    return found[0] if found else None


async def _await_end(connection: AsyncConnection, schema: str, keys: list[int]) -> None:
    """Mark rows before they are looked at: an end after the look finds the mark, one before is seen."""
    await connection.execute(
        text(f"""
            UPDATE {schema}.tasks SET is_awaited = true
            WHERE key = ANY(CAST(:keys AS bigint[])) AND NOT is_awaited AND state NOT IN ({_ENDS})"""),
        {"keys": keys},
    )


def _status(row: Row[Any]) -> TaskStatus:
    return TaskStatus(
        id=row.message_id,
        name=row.name,
        queue=row.queue,
        state=TaskState(row.state),
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        result=None if row.result is None else json.loads(row.result),
        reason=row.reason,
        error_type=row.error_type,
        error_message=row.error_message,
        progress=to_progress(row.progress),
        progress_note=row.progress_note,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        is_cancel_requested=row.is_cancel_requested,
    )

"""Lists of tasks: newest first, by any filter, each page bounded however many rows there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.store.database import Database
from broker_worker.store.queries import (
    DISORDER,
    PAIR_CONDITIONS,
    PAIRS,
    TASK_COLUMNS,
    TaskLookup,
    TaskSummary,
    find_keys,
    key_at,
    page_size,
    to_summary,
)

FEW = 10_000  # tasks of some queues and names, of which a page may look at all
MAX_WALK = 100_000  # rows that one page may look at where no index finds what its filters ask for
BUSY_STATES = frozenset({"running", "succeeded"})  # all others have an index

CONDITIONS = """(CAST(:queue AS text) IS NULL OR t.queue = :queue)
  AND (CAST(:name AS text) IS NULL OR t.name = :name)
  AND (CAST(:since AS timestamptz) IS NULL OR t.created_at >= :since)
  AND (CAST(:until AS timestamptz) IS NULL OR t.created_at < :until)"""
WALK = "SELECT * FROM {schema}.tasks WHERE key BETWEEN :low AND :high ORDER BY key DESC LIMIT :walk"
# the index has all that is asked for: rows are read only where they fit
BY_STATE = f"""SELECT * FROM {{schema}}.tasks WHERE key = ANY(ARRAY(
  SELECT t.key FROM {{schema}}.tasks t
  WHERE t.other_state = :state AND t.key BETWEEN :low AND :high AND {CONDITIONS}
  ORDER BY t.key DESC LIMIT :limit))"""


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks: all that is given has to fit. `since` and `until` are about creation."""

    state: str | None = None
    queue: str | None = None
    name: str | None = None
    message_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Newest first. `before_key` asks for the next page; nothing where this was the last one.

    A page can be short, or empty, and not the last one: it looked at all the rows it may.
    """

    tasks: list[TaskSummary]
    before_key: int | None


async def list_tasks(
    database: Database, where: TaskFilter, *, limit: int = 50, before_key: int | None = None
) -> TaskPage:
    """List tasks, newest first.

    What is rare is found by an index, however old it is: a state but `running` and `succeeded`, an id, a
    queue or name with few tasks. All else is looked for among the newest rows, `MAX_WALK` for each page.
    """
    size = page_size(limit)
    async with database.transaction() as connection:
        found = await _found_by(connection, database.schema, where, before_key)
        rows = await connection.execute(
            text(f"""
                SELECT {TASK_COLUMNS} FROM ({found.query.format(schema=database.schema)}) t
                WHERE (CAST(:state AS text) IS NULL OR t.state = :state)
                  AND {CONDITIONS}
                  AND (CAST(:before_key AS bigint) IS NULL OR t.key < :before_key)
                ORDER BY t.key DESC LIMIT :limit"""),
            {**_conditions(where), **found.values, "before_key": before_key, "limit": size},
        )
        tasks = [to_summary(row) for row in rows]
        if len(tasks) >= size:
            return TaskPage(tasks, tasks[-1].key)
        if found.is_complete:
            return TaskPage(tasks, None)
        return TaskPage(tasks, await _walked_to(connection, database.schema, found.values))


@dataclass(frozen=True, slots=True)
class _Found:
    """Rows among which a page's tasks are: all of them where it `is_complete`, else the newest."""

    query: str
    values: Mapping[str, object]
    is_complete: bool = True


async def _found_by(
    connection: AsyncConnection, schema: str, where: TaskFilter, before_key: int | None
) -> _Found:
    """Choose how to look for tasks."""
    by_keys = "SELECT * FROM {schema}.tasks WHERE key = ANY(CAST(:keys AS bigint[]))"
    if where.message_id is not None:
        lookup = TaskLookup(where.message_id, where.queue, where.name)
        return _Found(by_keys, {"keys": await find_keys(connection, schema, lookup)})
    is_busy = where.state is None or where.state in BUSY_STATES
    if is_busy and (where.queue or where.name):
        keys = await _keys_if_few(connection, schema, where)
        if keys is not None:
            return _Found(by_keys, {"keys": keys})
    range_ = await _key_range(connection, schema, where, before_key)
    if is_busy:
        return _Found(WALK, {**range_, "walk": MAX_WALK}, is_complete=False)
    return _Found(BY_STATE, range_)


async def _keys_if_few(connection: AsyncConnection, schema: str, where: TaskFilter) -> list[int] | None:
    """Find the tasks of a queue, a name or both; nothing where they are more than a few.

    They are counted first: that reads the index alone. Their order is the index's, so that it is used.
    """
    of_pairs = f"""
        {PAIRS.format(schema=schema)}
        SELECT {{what}} FROM pairs CROSS JOIN LATERAL (
          SELECT {{column}} FROM {schema}.tasks t WHERE t.queue = pairs.queue AND t.name = pairs.name
          ORDER BY t.message_id LIMIT {FEW + 1}) n
        WHERE {PAIR_CONDITIONS}"""
    values = {"queue": where.queue, "name": where.name}
    counted = of_pairs.format(what="1", column="1") + f" LIMIT {FEW + 1}"
    count = await connection.execute(text(f"SELECT count(*) FROM ({counted}) n"), values)
    if count.scalar_one() > FEW:
        return None
    rows = await connection.execute(text(of_pairs.format(what="n.key", column="t.key")), values)
    return [row.key for row in rows]


async def _key_range(
    connection: AsyncConnection, schema: str, where: TaskFilter, before_key: int | None
) -> dict[str, object]:
    low, high = 0, 2**63 - 1
    if where.since is not None:
        low = await key_at(connection, schema, where.since - DISORDER)
    if where.until is not None:
        high = await key_at(connection, schema, where.until + DISORDER)
    if before_key is not None:
        high = min(high, before_key - 1)
    return {"low": low, "high": high}


def _conditions(where: TaskFilter) -> dict[str, object]:
    return {
        "state": where.state,
        "queue": where.queue,
        "name": where.name,
        "since": where.since,
        "until": where.until,
    }


async def _walked_to(connection: AsyncConnection, schema: str, walk: Mapping[str, object]) -> int | None:
    """Say where a walk that found less than a page stopped; nothing where it reached the end."""
    row = (
        await connection.execute(
            text(f"""
                SELECT key FROM {schema}.tasks WHERE key BETWEEN :low AND :high
                ORDER BY key DESC OFFSET :walk LIMIT 1"""),
            walk,
        )
    ).first()
    return None if row is None else int(row.key) + 1

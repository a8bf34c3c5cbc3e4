"""What keeps a table of many millions of tasks as fast as an empty one."""

from __future__ import annotations

import asyncio

import asyncpg

from broker_worker.outcome import Succeeded
from tests.support.inbox import a_message, opened

MANY = 400  # more than a group commit takes, so that whole pages change in one transaction


async def all_succeed_at_once(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claims = await asyncio.gather(*(inbox.claim(a_message(f"t-{number}")) for number in range(MANY)))
        recorded = await asyncio.gather(
            *(inbox.tasks.record(claim, Succeeded('{"x": 1}')) for claim in claims)
        )
        assert len([outcome for outcome in recorded if outcome]) == MANY


async def updates(connection: asyncpg.Connection) -> tuple[int, int]:
    """All updates of tasks, and the heap-only ones, once the connections that made them have reported."""
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'tasks'"
    while (row := await connection.fetchrow(query))["n_tup_upd"] < MANY:
        await asyncio.sleep(0.01)
    return row["n_tup_upd"], row["n_tup_hot_upd"]


async def test_a_success_is_a_heap_only_update(database_url: str) -> None:
    await all_succeed_at_once(database_url)

    connection = await asyncpg.connect(database_url)
    try:
        assert await updates(connection) == (MANY, MANY)
    finally:
        await connection.close()


async def test_a_task_that_just_succeeds_enters_only_the_indexes_of_its_key_and_its_identity(
    database_url: str,
) -> None:
    await all_succeed_at_once(database_url)

    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("""
            SELECT indexrelname FROM pg_stat_user_indexes
            WHERE relname = 'tasks' AND pg_relation_size(indexrelid) > current_setting('block_size')::int
            ORDER BY indexrelname""")  # an empty index is one page
    finally:
        await connection.close()
    assert [row["indexrelname"] for row in rows] == ["tasks_pkey", "tasks_queue_name_message_id_key"]

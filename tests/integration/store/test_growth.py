"""What keeps a table of many millions of tasks as fast as an empty one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from benchmarks.history import DAYS, write_history
from broker_worker.outcome import Succeeded
from broker_worker.store import rescue
from broker_worker.store.dead_letters import Desk, Selection
from broker_worker.store.listing import TaskFilter, list_tasks
from broker_worker.store.pruning import PruningStore
from broker_worker.store.rescue import RescueStore
from broker_worker.store.statistics import stats
from tests.support.inbox import Inbox, a_message, opened

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


async def rows_read(connection: asyncpg.Connection) -> int:
    """How many rows of tasks were read so far, by an index or without."""
    read: int = await connection.fetchval(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'tasks'"
    )
    return read


async def test_statistics_of_the_last_days_do_not_read_what_is_older(database_url: str) -> None:
    async with opened(database_url):
        await write_history(database_url, 20_000)
    connection = await asyncpg.connect(database_url)
    try:
        before = await rows_read(connection)

        async with opened(database_url) as inbox:
            found = await stats(inbox.database, since=timedelta(days=DAYS * 0.1))
        counted = sum(row.succeeded for row in found.rows)
        while (read := await rows_read(connection) - before) < counted:  # until its connection has reported
            await asyncio.sleep(0.01)

        assert counted > 1_500
        assert read < 4_000
    finally:
        await connection.close()


async def left_by_the_dead(inbox: Inbox, count: int) -> None:
    """Let tasks run under a worker that died hours ago, whose messages never came back."""
    gone = uuid4()
    await inbox.execute(
        """INSERT INTO {schema}.workers (id, name, release, dead_at)
           VALUES (:id, 'w', '0', now() - interval '7 h')""",
        id=gone,
    )
    for number in range(count):
        claim = await inbox.claim(a_message(f"lost-{number}"))
        await inbox.execute("UPDATE {schema}.tasks SET worker = :id WHERE key = :key", id=gone, key=claim.key)


def a_rescuer(inbox: Inbox) -> RescueStore:
    return RescueStore(inbox.database, worker=inbox.worker, owed=inbox.owed.extend)


async def test_lost_tasks_are_looked_for_a_window_at_a_time_by_whoever_is_free(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "WINDOW", 2)
    async with opened(database_url) as inbox:
        await left_by_the_dead(inbox, 5)

        turns = [await a_rescuer(inbox).bury_lost() for _ in range(4)]

        assert turns == [2, 2, 1, 0]
        [row] = await inbox.fetch("SELECT count(*) AS n FROM {schema}.workers WHERE swept_at IS NOT NULL")
        assert row["n"] == 1


async def test_a_walk_comes_to_its_end_also_where_a_worker_dies_in_each_turn(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "WINDOW", 2)
    async with opened(database_url) as inbox:
        await left_by_the_dead(inbox, 6)
        turns = []
        for _ in range(3):
            turns.append(await a_rescuer(inbox).bury_lost())
            await left_by_the_dead(inbox, 0)

        assert turns == [2, 2, 2]
        [row] = await inbox.fetch("SELECT count(*) AS n FROM {schema}.workers WHERE swept_at IS NOT NULL")
        assert row["n"] >= 1


async def test_no_lost_task_is_passed_by_where_a_turn_ends_within_its_window(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "BATCH", 2)
    async with opened(database_url) as inbox:
        await left_by_the_dead(inbox, 5)

        assert [await a_rescuer(inbox).bury_lost() for _ in range(4)] == [2, 2, 1, 0]


async def test_keys_may_pass_what_32_bits_hold(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.execute("ALTER TABLE {schema}.tasks ALTER COLUMN key RESTART WITH 5000000000")
        desk = Desk(inbox.database)

        done = await inbox.succeed(a_message("done"))
        await inbox.die(a_message("dead"))
        await inbox.postpone(a_message("later"))
        await left_by_the_dead(inbox, 1)
        await inbox.age(8, key=done.key)
        page = await list_tasks(inbox.database, TaskFilter(), limit=1)
        rest = await list_tasks(inbox.database, TaskFilter(), before_key=page.before_key)
        [letter] = await desk.list_letters(Selection())
        replayed = await desk.replay(letter.id, actor="ada")

        assert [task.id for task in page.tasks + rest.tasks] == ["lost-0", "later", "dead", "done"]
        assert replayed.is_done
        assert await a_rescuer(inbox).bury_lost() == 1
        assert await a_rescuer(inbox).bury_lost() == 0
        assert (await PruningStore(inbox.database).prune_succeeded(older_than=timedelta(days=7))).count == 1

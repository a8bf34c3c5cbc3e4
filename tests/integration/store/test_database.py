"""What a connection may keep: everything straight to the server, nothing behind a transaction pooler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import text

from broker_worker.errors import StoreDataError, StoreUnavailableError
from broker_worker.local import LocalServerError
from broker_worker.store.database import LIMITS, Database
from tests.support.pgbouncer import PgBouncer, running_pgbouncer
from tests.support.services import RunningServers, with_database

SETTINGS = text(
    "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), "
    "current_setting('idle_in_transaction_session_timeout'), current_setting('enable_seqscan')"
)
SET = [*(f"{int(limit) // 1000}s" for limit in LIMITS.values()), "off"]
PREPARED = text("SELECT name FROM pg_prepared_statements WHERE statement LIKE 'SELECT pg_backend_pid()%'")
PID = text("SELECT pg_backend_pid() AS pid, CAST(:n AS int) AS n")


@pytest.fixture(scope="module")
def pgbouncer(running_servers: RunningServers) -> Iterator[PgBouncer]:
    try:
        with running_pgbouncer(running_servers.servers.database_url) as bouncer:
            yield bouncer
    except LocalServerError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["direct", "behind pgbouncer"])
def way(request: pytest.FixtureRequest, database_url: str) -> str:
    """Lead to a database, with nothing between or a pooler in transaction mode."""
    if request.param == "direct":
        return database_url
    bouncer: PgBouncer = request.getfixturevalue("pgbouncer")
    return bouncer.url(database_url)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database.open(lambda: url, schema="broker_worker", pool_size=1, by_index=True)
    try:
        yield database
    finally:
        await database.close()


async def test_a_transaction_has_limits_whatever_lies_between(way: str) -> None:
    async with opened(way) as database, database.transaction() as connection:
        assert list((await connection.execute(SETTINGS)).one()) == SET


async def test_a_single_statement_has_the_same_limits(way: str) -> None:
    async with opened(way) as database:
        [row] = await database.single(SETTINGS, {})

    assert list(row) == SET


async def test_a_single_statement_is_committed_when_it_returns(way: str, database_url: str) -> None:
    admin = await asyncpg.connect(database_url)
    await admin.execute("CREATE TABLE public.kept (n int); GRANT ALL ON public.kept TO PUBLIC")
    insert = text("INSERT INTO public.kept VALUES (:n) RETURNING n")

    async with opened(way) as database:
        rows = await database.single(insert, {"n": 7})
        seen = await admin.fetchval("SELECT n FROM public.kept")
    await admin.close()

    assert ([row["n"] for row in rows], seen) == ([7], 7)


async def test_straight_to_the_server_a_statement_is_prepared_once(database_url: str) -> None:
    async with opened(database_url) as database:
        for n in range(3):
            await database.single(PID, {"n": n})
        prepared = await database.single(PREPARED, {})

    assert len(prepared) == 1


async def test_behind_a_pooler_nothing_is_left_in_a_session(pgbouncer: PgBouncer, database_url: str) -> None:
    async with opened(pgbouncer.url(database_url)) as database:
        for n in range(3):
            await database.single(PID, {"n": n})
        prepared = await database.single(PREPARED, {})
    stranger = await asyncpg.connect(pgbouncer.url(database_url), statement_cache_size=0)
    async with stranger.transaction():  # in one of the sessions that the worker has used
        limit = await stranger.fetchval("SELECT current_setting('lock_timeout')")
    await stranger.close()

    assert prepared == []
    assert limit == "0"


async def test_a_value_that_postgres_refuses_is_named_and_costs_no_connection(database_url: str) -> None:
    async with opened(database_url) as database:
        [before] = await database.single(PID, {"n": 1})
        with pytest.raises(StoreDataError, match="22012"):
            await database.single(text("SELECT 1 / CAST(:n AS int)"), {"n": 0})
        [after] = await database.single(PID, {"n": 1})

    assert before["pid"] == after["pid"]


async def test_after_a_change_of_the_schema_a_statement_is_prepared_again(database_url: str) -> None:
    admin = await asyncpg.connect(database_url)
    await admin.execute("CREATE TABLE changing (n int); INSERT INTO changing VALUES (1)")
    look = text("SELECT n FROM changing")

    async with opened(database_url) as database:
        before = await database.single(look, {})
        await admin.execute("ALTER TABLE changing ALTER n TYPE text")
        with pytest.raises(asyncpg.PostgresError):
            await database.single(look, {})
        after = await database.single(look, {})
    await admin.close()

    assert (before[0]["n"], after[0]["n"]) == (1, "1")


async def test_after_a_session_was_ended_there_is_another(database_url: str) -> None:
    admin = await asyncpg.connect(database_url)
    async with opened(database_url) as database:
        [row] = await database.single(PID, {"n": 1})
        await admin.execute(f"SELECT pg_terminate_backend({row['pid']})")
        with pytest.raises(StoreUnavailableError):
            await database.single(PID, {"n": 1})
        again = await database.single(PID, {"n": 1})
    await admin.close()

    assert len(again) == 1


async def test_a_database_that_lets_nobody_in_is_waited_for(database_url: str) -> None:
    admin = await asyncpg.connect(with_database(database_url, "postgres"))
    name = database_url.rpartition("/")[2].partition("?")[0]
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    async with opened(database_url) as database:
        with pytest.raises(StoreUnavailableError, match="55000"):
            await database.single(PID, {"n": 1})
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        again = await database.single(PID, {"n": 1})
    await admin.close()

    assert len(again) == 1


async def single(database: Database) -> None:
    await database.single(text("INSERT INTO written VALUES (1) RETURNING n"), {})


async def in_a_transaction(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(text("INSERT INTO written VALUES (1)"))


@pytest.mark.parametrize("write", [single, in_a_transaction])
async def test_a_server_that_became_read_only_is_left_for_the_one_that_is_not(
    write: Callable[[Database], Awaitable[None]], database_url: str
) -> None:
    admin = await asyncpg.connect(database_url)
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute("CREATE TABLE written (n int)")
    async with opened(database_url) as database:
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(StoreUnavailableError, match="25006"):
            await write(database)
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        await write(database)
    written = await admin.fetchval("SELECT count(*) FROM written")
    await admin.close()

    assert written == 1

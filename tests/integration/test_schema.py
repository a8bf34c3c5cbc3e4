"""The schema's life in a real Postgres, and what its own guards refuse."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from broker_worker.dead_letter import letter_of_stranger
from broker_worker.errors import SchemaError
from broker_worker.message import Message, Properties, TaskId
from broker_worker.outcome import Dead, Failure, Postponed, Reason, Succeeded
from broker_worker.store.database import Database
from broker_worker.store.dead_letters import Desk, Selection
from broker_worker.store.interventions import cancel_task, erase_task
from broker_worker.store.letters import LetterStore
from broker_worker.store.listing import TaskFilter, list_tasks
from broker_worker.store.migration import config, migration_sql
from broker_worker.store.pruning import PruningStore
from broker_worker.store.queries import TaskLookup, show_task
from broker_worker.store.schema import LOCK_KEY, NEWEST, REVISIONS, check_schema, grants_sql, migrate
from broker_worker.store.statistics import outbox_gauge, stats
from broker_worker.task import TRANSITIONS, TaskState
from tests.support.services import execute
from tests.support.worlds import PostgresWorld

SCHEMA = "broker_worker"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database.open(lambda: database_url, schema=SCHEMA, pool_size=3)
    yield database
    await database.close()


@pytest.fixture
async def fresh(database_url: str) -> AsyncIterator[Database]:
    """A schema of another name, which is not there yet."""
    database = Database.open(lambda: database_url, schema="fresh", pool_size=3)
    yield database
    await database.close()


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A role that may log in and owns nothing; its password is its name."""
    name = f"runtime_{secrets.token_hex(6)}"
    execute(database_url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    yield name
    execute(database_url, f"DROP OWNED BY {name}")
    execute(database_url, f"DROP ROLE {name}")


async def rows(database: Database, query: str, **values: object) -> list[Any]:
    async with database.transaction() as connection:
        found = await connection.execute(text(query), values)
        return list(found.all()) if found.returns_rows else []


async def structure(database: Database) -> dict[str, list[Any]]:
    """Everything of a schema that makes a difference."""
    schema = database.schema_name
    queries = {
        "columns": """
            SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity
            FROM information_schema.columns WHERE table_schema = :schema ORDER BY 1, 2""",
        "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = :schema ORDER BY 1",
        "constraints": """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = CAST(CAST(:schema AS text) AS regnamespace) ORDER BY 1, 2""",
        "triggers": """
            SELECT t.tgname, pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
            WHERE c.relnamespace = CAST(CAST(:schema AS text) AS regnamespace) AND NOT t.tgisinternal
            ORDER BY 1""",
        "options": """
            SELECT relname, reloptions FROM pg_class
            WHERE relnamespace = CAST(CAST(:schema AS text) AS regnamespace) ORDER BY 1""",
    }
    return {name: await rows(database, query, schema=schema) for name, query in queries.items()}


# --- migrations ----------------------------------------------------------------------


async def test_migrating_makes_the_schema_and_again_is_no_change(fresh: Database) -> None:
    await migrate(fresh)
    before = await structure(fresh)

    await migrate(fresh)

    assert await check_schema(fresh) == NEWEST
    assert await structure(fresh) == before
    assert before["columns"]


async def test_several_may_migrate_at_once(database_url: str, fresh: Database) -> None:
    others = [Database.open(lambda: database_url, schema="fresh", pool_size=1) for _ in range(3)]

    await asyncio.gather(*(migrate(database) for database in others))

    assert await check_schema(fresh) == NEWEST
    for database in others:
        await database.close()


async def test_a_migration_takes_longer_than_any_other_command_may(database_url: str) -> None:
    hurried = Database.open(
        lambda: database_url, schema="fresh", pool_size=1, command_timeout=timedelta(seconds=1)
    )
    other = await asyncpg.connect(database_url)
    await other.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")

    migration = asyncio.ensure_future(migrate(hurried))
    await asyncio.wait({migration}, timeout=3)
    was_done = migration.done()
    await other.close()
    await migration

    assert not was_done
    assert await check_schema(hurried) == NEWEST
    await hurried.close()


async def test_a_migration_that_is_not_needed_waits_for_no_other(database_url: str, fresh: Database) -> None:
    await migrate(fresh)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")

        await migrate(fresh)
    finally:
        await connection.close()


async def test_a_migration_leaves_the_schema_of_a_later_release_as_it_is(database: Database) -> None:
    await set_revision(database, "9999")

    await migrate(database)

    assert await rows(database, f"SELECT version_num FROM {SCHEMA}.alembic_version") == [("9999",)]


async def test_a_role_that_may_not_migrate_is_told_who_may(database_url: str, role: str) -> None:
    database = Database.open(lambda: as_role(database_url, role), schema="fresh", pool_size=1)

    with pytest.raises(SchemaError, match="run `broker-worker migrate` as its owner"):
        await migrate(database)

    await database.close()


def test_the_revisions_are_counted() -> None:
    scripts = ScriptDirectory.from_config(config(SCHEMA))

    assert [each.revision for each in scripts.walk_revisions()] == list(reversed(REVISIONS))


async def test_the_printed_sql_makes_the_same_schema(database_url: str, fresh: Database) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(migration_sql("fresh"))
        by_people = await structure(fresh)
        await connection.execute("DROP SCHEMA fresh CASCADE")
    finally:
        await connection.close()
    await migrate(fresh)

    assert by_people == await structure(fresh)
    assert await check_schema(fresh) == NEWEST


async def test_a_role_without_rights_on_the_database_migrates_inside_a_schema_made_for_it(
    database_url: str, role: str
) -> None:
    execute(database_url, f"CREATE SCHEMA fresh AUTHORIZATION {role}")
    database = Database.open(lambda: as_role(database_url, role), schema="fresh", pool_size=1)

    await migrate(database)

    assert await check_schema(database) == NEWEST
    await database.close()


# --- which schema a release works on -----------------------------------------------------


async def set_revision(database: Database, revision: str) -> None:
    await migrate(database)
    await rows(database, f"UPDATE {SCHEMA}.alembic_version SET version_num = :revision", revision=revision)


async def test_the_next_releases_schema_is_taken(database: Database) -> None:
    following = f"{int(NEWEST) + 1:04}"
    await set_revision(database, following)

    assert await check_schema(database) == following


@pytest.mark.parametrize(
    "revision",
    [f"{int(NEWEST) + 2:04}", "9999", "0000", "deadbeef0123", "zzz"],
    ids=["the one after next", "far ahead", "too old", "of another line", "no number"],
)
async def test_any_other_schema_is_refused_in_one_line(database: Database, revision: str) -> None:
    await set_revision(database, revision)

    with pytest.raises(SchemaError, match=revision) as refused:
        await check_schema(database)

    assert "\n" not in str(refused.value)


async def test_a_missing_schema_is_refused_with_the_command_that_makes_it(fresh: Database) -> None:
    with pytest.raises(
        SchemaError, match=r"'fresh' is not there yet: run `broker-worker migrate`"
    ) as refused:
        await check_schema(fresh)

    assert "\n" not in str(refused.value)


async def test_a_role_without_rights_is_told_which_command_prints_them(database_url: str, role: str) -> None:
    await opened_and_closed(database_url)
    database = Database.open(lambda: as_role(database_url, role), schema=SCHEMA, pool_size=1)

    with pytest.raises(SchemaError, match="broker-worker grants"):
        await check_schema(database)

    await database.close()


# --- guards --------------------------------------------------------------------------------


async def put(database: Database, state: str) -> int:
    await migrate(database)
    ((key,),) = await rows(
        database,
        f"""INSERT INTO {SCHEMA}.tasks (queue, name, message_id, digest, state, max_attempts, epoch)
            VALUES ('q', 'n', gen_random_uuid()::text, '', :state, 3, 5) RETURNING key""",
        state=state,
    )
    assert isinstance(key, int)
    return key


async def is_legal(database: Database, before: TaskState, after: TaskState) -> bool:
    key = await put(database, before)
    try:
        await rows(
            database, f"UPDATE {SCHEMA}.tasks SET state = :s, epoch = 6 WHERE key = :k", s=str(after), k=key
        )
    except DBAPIError as error:
        assert "illegal step" in str(error)  # noqa: PT017 - the other way is no failure
        return False
    return True


@pytest.mark.parametrize("before", TaskState)
async def test_the_trigger_refuses_exactly_what_the_table_of_transitions_does(
    database: Database, before: TaskState
) -> None:
    legal = {after for after in TaskState if await is_legal(database, before, after)}

    assert legal == TRANSITIONS[before]


async def test_a_finished_row_may_change_without_a_step(database: Database) -> None:
    key = await put(database, "succeeded")

    await rows(database, f"UPDATE {SCHEMA}.tasks SET result = NULL WHERE key = :key", key=key)


async def test_only_a_newer_epoch_replays(database: Database) -> None:
    key = await put(database, "dead")

    with pytest.raises(DBAPIError, match="illegal step"):
        await rows(database, f"UPDATE {SCHEMA}.tasks SET state = 'queued' WHERE key = :key", key=key)


@pytest.mark.parametrize("statement", ["UPDATE {t} SET actor = 'nobody'", "DELETE FROM {t}"])
async def test_the_audit_is_insert_only(database: Database, statement: str) -> None:
    await migrate(database)
    await rows(database, f"INSERT INTO {SCHEMA}.audit (actor, action) VALUES ('ada', 'replay')")

    with pytest.raises(DBAPIError, match="insert-only"):
        await rows(database, statement.format(t=f"{SCHEMA}.audit"))


# --- a role that owns nothing --------------------------------------------------------------------


async def opened_and_closed(url: str) -> None:
    database = Database.open(lambda: url, schema=SCHEMA, pool_size=1)
    await migrate(database)
    await database.close()


def as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{role}@{parts.hostname}:{parts.port}"))


@pytest.fixture
async def world(database_url: str, role: str) -> AsyncIterator[PostgresWorld]:
    """Workers whose role has what `grants` prints and nothing more."""
    world = PostgresWorld(database_url, as_role(database_url, role))
    async with world.cleanup:
        await world.begin()
        for statement in grants_sql(SCHEMA, role).splitlines():
            execute(database_url, statement)
        yield world


@pytest.fixture
async def runtime(world: PostgresWorld) -> AsyncIterator[Database]:
    database = Database.open(lambda: world.runtime_url, schema=SCHEMA, pool_size=2)
    yield database
    await database.close()


def message(id_: str) -> Message:
    return Message(TaskId("email", "email.send", id_), b"{}")


FAILURE = Failure("ValueError", "no")


async def test_the_granted_rights_do_for_everything_a_worker_does(world: PostgresWorld) -> None:
    worker, other = await world.join(), await world.join()

    await worker.finish(message("1"), Succeeded("1"))
    await worker.finish(message("2"), Postponed(timedelta(0), FAILURE))
    await worker.finish(message("3"), Dead(Reason.GAVE_UP, FAILURE))
    stranger = letter_of_stranger(Properties(), b"", queue="email", reason=Reason.MALFORMED, failure=FAILURE)
    await worker.tasks.bury(stranger)
    await worker.outbox.put_back([owed.id for owed in worker.owed])
    await worker.outbox.delete([owed.id for owed in worker.owed])
    await worker.claim(message("4"))
    await other.arrive(message("4"))
    await worker.claim(message("5"))
    await world.kill(worker)
    await world.pass_time(timedelta(hours=7))
    beats = await other.workers.beat({"email": 99.0})

    assert beats
    assert await other.rescues.rescue() == 1
    assert await other.rescues.reemit_overdue() == 1
    assert await other.rescues.release_forgotten([]) == 0
    assert await other.rescues.bury_lost() == 1
    assert await other.outbox.take(100) == []
    await other.membership.leave()


async def test_the_granted_rights_do_for_everything_an_operator_does(
    world: PostgresWorld, runtime: Database
) -> None:
    worker = await world.join()
    await worker.finish(message("1"), Dead(Reason.GAVE_UP, FAILURE))
    await worker.finish(message("2"), Dead(Reason.GAVE_UP, FAILURE))
    await worker.finish(message("3"), Postponed(timedelta(0), FAILURE))
    desk = Desk(runtime)
    letters = [letter async for letter in desk.select(Selection())]

    assert await check_schema(runtime) == NEWEST
    await desk.replay(letters[0], actor="ada")
    await desk.discard(letters[1], actor="ada")
    await cancel_task(runtime, TaskLookup("3"), actor="ada")
    await erase_task(runtime, TaskLookup("3"), actor="ada")
    assert (await list_tasks(runtime, TaskFilter())).tasks
    assert await show_task(runtime, TaskLookup("1"))
    assert not await LetterStore(runtime).knows(letters[0], b"other")
    await stats(runtime)
    await outbox_gauge(runtime)
    pruning = PruningStore(runtime)
    await pruning.prune_succeeded(older_than=timedelta(days=1))
    await pruning.prune_others(older_than=timedelta(days=1))
    await pruning.prune_payloads()
    await pruning.prune_letters(older_than=timedelta(days=1))
    await pruning.prune_workers()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE {s}.more (id int)",
        "ALTER TABLE {s}.tasks ADD more int",
        "DROP TABLE {s}.tasks",
        "UPDATE {s}.audit SET actor = 'nobody'",
        "DELETE FROM {s}.audit",
        "UPDATE {s}.alembic_version SET version_num = '0'",
        "ALTER TABLE {s}.tasks DISABLE TRIGGER legal_step",
    ],
)
async def test_the_granted_rights_are_rows_and_no_structure(
    world: PostgresWorld, runtime: Database, statement: str
) -> None:
    with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
        await rows(runtime, statement.format(s=SCHEMA))

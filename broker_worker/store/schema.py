"""The schema's life: bring it up to date, check it, and say what a runtime role needs."""

from __future__ import annotations

from sqlalchemy.exc import ProgrammingError

from broker_worker.errors import SchemaError
from broker_worker.store.database import Database, first_line, sqlstate

VERSION_TABLE = "alembic_version"
OLDEST = "0003"  # the oldest revision that this release works on
NEWEST = "0003"
REVISIONS = tuple(f"{number:04}" for number in range(1, int(NEWEST) + 1))
LOCK_KEY = 0x62776D67  # one migration at a time; any number that is ours
NO_RIGHT = "42501"
NOT_THERE = frozenset({"42P01", "3F000"})  # undefined table, undefined schema
COMPLETE = "complete(bigint, integer, uuid, json, text)"  # for handlers that commit by themselves
FINISH = "finish(bigint, integer, uuid, json, text, boolean)"  # for those whose transaction is ours
TABLES = ("tasks", "payloads", "attempts", "checkpoints", "dead_letters", "outbox", "workers")


async def migrate(database: Database) -> None:
    """Bring the schema up to date; idempotent, and safe when several do it at once.

    A schema of a later release is left as it is.

    Raises:
        SchemaError: this role may not.
        StoreUnavailableError: Postgres can't now.
    """
    if await _has_newest(database):
        return  # nothing to wait for, and a start with AUTO_MIGRATE is spared the import of alembic
    from broker_worker.store.migration import upgrade  # noqa: PLC0415 - 70 ms, and often not needed

    try:
        async with database.unhurried() as unhurried, unhurried.transaction() as connection:
            await connection.exec_driver_sql(
                "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '60s', true)"
            )
            # whoever waited here finds nothing left to do: the revision is read again below
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
            await connection.run_sync(upgrade, database)
    except ProgrammingError as error:
        if sqlstate(error) != NO_RIGHT:
            raise
        detail = (
            f"this role may not migrate schema {database.schema_name!r}: {first_line(error.orig or error)}"
        )
        raise SchemaError(f"{detail}; run `broker-worker migrate` as its owner") from error


def grants_sql(schema: str, role: str) -> str:
    """The rights of a runtime role that owns nothing: rows, and no structure."""
    tables = ", ".join(f'"{schema}".{name}' for name in TABLES)
    lines = (
        f'GRANT USAGE ON SCHEMA "{schema}" TO "{role}";',
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO "{role}";',
        f'GRANT SELECT, INSERT ON "{schema}".audit TO "{role}";',
        f'GRANT SELECT ON "{schema}".{VERSION_TABLE} TO "{role}";',
        f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{role}";',
        f'GRANT EXECUTE ON FUNCTION "{schema}".{COMPLETE} TO "{role}";',
        f'GRANT EXECUTE ON FUNCTION "{schema}".{FINISH} TO "{role}";',
    )
    return "\n".join(lines) + "\n"


async def check_schema(database: Database) -> str:
    """Return the schema's revision if this release works on it.

    Raises:
        SchemaError: it is missing, older than this release can use, or of another line.
        StoreUnavailableError: Postgres can't be asked.
    """
    found = await _revision(database)
    if found is None:
        raise SchemaError(f"schema {database.schema_name!r} is not there yet: run `broker-worker migrate`")
    if found in REVISIONS and found < OLDEST:
        raise SchemaError(f"schema {found} is older than {OLDEST}: run `broker-worker migrate`")
    if found not in REVISIONS and (found <= NEWEST or not found.isdecimal()):
        raise SchemaError(f"schema {found} is not one of this package's: {', '.join(REVISIONS)}")
    if int(found) > int(NEWEST) + 1:
        raise SchemaError(f"schema {found} is too new for this release, which knows {NEWEST} and the next")
    return found


async def _has_newest(database: Database) -> bool:
    """Whether there is nothing to migrate; what can't be read is left to the migration, and to its errors."""
    try:
        found = await _revision(database)
    except SchemaError:
        return False
    return found is not None and found.isdecimal() and int(found) >= int(NEWEST)


async def _revision(database: Database) -> str | None:
    try:
        async with database.transaction() as connection:
            row = await connection.exec_driver_sql(
                f"SELECT version_num FROM {database.schema}.{VERSION_TABLE}"
            )
            return row.scalar()
    except ProgrammingError as error:
        if sqlstate(error) in NOT_THERE:
            return None
        if sqlstate(error) == NO_RIGHT:
            raise SchemaError(
                f"no right to read schema {database.schema_name!r}: see `broker-worker grants`"
            ) from error
        raise

"""A database opened for a visit: a command's, or a client's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.exc import DBAPIError

from broker_worker.errors import BrokerWorkerError, SchemaError
from broker_worker.store.database import Database, first_line, sqlstate
from broker_worker.store.schema import NO_RIGHT, check_schema


@asynccontextmanager
async def visit(
    reveal_url: Callable[[], str], *, schema: str, checks_schema: bool = True
) -> AsyncIterator[Database]:
    """Open a database whose schema this release works on; whatever goes wrong in it is one line.

    Raises:
        SchemaError: the schema does not fit, or this role lacks a right on it.
        StoreUnavailableError: Postgres can't be reached.
    """
    database = Database.open(reveal_url, schema=schema, pool_size=2, application="broker_worker command")
    try:
        with explained():
            if checks_schema:
                await check_schema(database)
            yield database
    finally:
        await database.close()


@contextmanager
def explained() -> Iterator[None]:
    """Turn what Postgres refuses inside into one line.

    Raises:
        SchemaError: this role lacks a right on the schema.
        BrokerWorkerError: anything else.
    """
    try:
        yield
    except DBAPIError as error:
        line = first_line(error.orig or error)
        if sqlstate(error) == NO_RIGHT:
            raise SchemaError(f"{line}: see `broker-worker grants`") from error
        raise BrokerWorkerError(f"Postgres refused it: {sqlstate(error)}: {line}") from error

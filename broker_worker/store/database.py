"""Connections to Postgres, and what their errors mean.

Made for what stands between companies and their Postgres: a pooler in
transaction mode (no session state, no named prepared statements, limits by
`SET LOCAL`), several hosts, a role that owns nothing, passwords that rotate.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from asyncpg.exceptions import ClientConfigurationError, InternalClientError
from asyncpg.exceptions import InterfaceError as DriverInterfaceError
from asyncpg.exceptions import PostgresError as DriverError
from sqlalchemy.exc import DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from broker_worker.errors import ConfigurationError, StoreDataError, StoreUnavailableError

STATEMENT_TIMEOUT = timedelta(seconds=15)
LOCK_TIMEOUT = timedelta(seconds=10)
CONNECT_TIMEOUT = timedelta(seconds=10)
POOL_TIMEOUT = timedelta(seconds=10)
COMMAND_TIMEOUT = timedelta(seconds=20)  # the client's own bound, for a server that does not answer at all

# libpq's own parameters that asyncpg would send to the server as settings, and poolers refuse
CLIENT_ONLY = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "requirepeer",
        "tcp_user_timeout",
    }
)
# SQLSTATE classes and codes after which the same statement may work later, on this server or another
UNAVAILABLE_CLASSES = ("08", "53", "57P", "58")
UNAVAILABLE_CODES = frozenset(
    {"25006", "40001", "40P01", "55P03", "57014", "25P03", "3D000", "28000", "28P01"}
)
# whatever the driver raises; a lost connection may show as an error of the operating system
FAULTS = (SQLAlchemyError, DriverError, DriverInterfaceError, InternalClientError, OSError)
HIGHEST_PORT = 65535  # of a higher one uvloop takes the rest of a division: another port
IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")

_MILLISECOND = timedelta(milliseconds=1)
LIMITS = (
    f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT // _MILLISECOND}', true), "
    f"set_config('lock_timeout', '{LOCK_TIMEOUT // _MILLISECOND}', true), "
    f"set_config('idle_in_transaction_session_timeout', '{STATEMENT_TIMEOUT // _MILLISECOND}', true)"
)


# The planner takes a table that it knows nothing of yet for small, and then scans all of it for each row of a
# batch. What a worker does all day goes by an index on a table of any size.
BY_INDEX = "SELECT set_config('enable_seqscan', 'off', true)"


class LimitedConnection(asyncpg.Connection):  # type: ignore[misc]  # the driver has no types
    """Sends the limits of a transaction together with its BEGIN: one round trip instead of three."""

    limits = LIMITS

    async def execute(self, query: str, *args: object, **options: object) -> str:
        """Execute; what begins a transaction sets its limits as well."""
        if query.startswith("BEGIN"):
            query = f"{query} {self.limits}"
        status: str = await super().execute(query, *args, **options)
        return status


class WorkersConnection(LimitedConnection):
    """One whose every statement is to go by an index."""

    limits = f"{LIMITS}; {BY_INDEX}"


class Database:
    """An engine with a bounded pool, and transactions with limits."""

    def __init__(self, engine: AsyncEngine, schema: str) -> None:
        self._engine = engine
        self.schema = quoted(schema)
        self.schema_name = schema

    @classmethod
    def open(
        cls,
        reveal_url: Callable[[], str],
        *,
        schema: str,
        pool_size: int,
        application: str = "broker_worker",
        command_timeout: timedelta | None = COMMAND_TIMEOUT,
        by_index: bool = False,
    ) -> Database:
        """Prepare a pool of at most `pool_size` connections; none is made yet.

        `reveal_url` is asked at each connect, so a rotated password is picked up. Without a
        `command_timeout` nothing has limits: for transactions whose end another sees to.
        `by_index`: no statement is to read a whole table.
        """
        connect_args = {
            "async_creator_fn": connector(reveal_url, application, command_timeout, by_index=by_index),
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: "",
        }
        engine = create_async_engine(
            "postgresql+asyncpg://",
            connect_args=connect_args,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT.total_seconds(),
            pool_use_lifo=True,
            hide_parameters=True,
        )
        return cls(engine, schema)

    def connect(self) -> AsyncConnection:
        """Offer a connection whose errors are the driver's; the caller begins and closes."""
        return self._engine.connect()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Begin; commit at the end, or roll back.

        Raises:
            StoreUnavailableError: Postgres could not do it now. After an error at the
                commit it is unknown whether it was done.
        """
        try:
            async with self._engine.begin() as connection:
                yield connection
        except FAULTS as error:
            if (detail := unavailability(error)) is not None:
                raise StoreUnavailableError(detail) from error
            if (code := sqlstate(error)) and code.startswith("22"):
                raise StoreDataError(f"{code}: {first_line(error)}") from error
            raise

    async def ping(self) -> None:
        """Return if Postgres answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        async with self.transaction() as connection:
            await connection.exec_driver_sql("SELECT 1")

    async def close(self) -> None:
        """Close every connection of the pool."""
        await self._engine.dispose()


def unavailability(error: BaseException) -> str | None:
    """Say in one line why Postgres can't do it now; nothing where the error is of another kind."""
    if isinstance(error, PoolTimeoutError):
        return "no connection of the pool became free"
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    # TimeoutError and ConnectionError are of the first; the second: no host is as the URL asks for
    if isinstance(cause, OSError | InternalClientError):
        return f"{type(cause).__name__}: {first_line(cause)}"
    code = sqlstate(error)
    if code.startswith(UNAVAILABLE_CLASSES) or code in UNAVAILABLE_CODES:
        return f"{code}: {first_line(cause)}"
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return f"connection lost: {first_line(cause)}"
    if isinstance(error, InterfaceError) or isinstance(cause, DriverInterfaceError):
        return f"connection lost: {first_line(cause)}"
    return None


def sqlstate(error: BaseException) -> str:
    """Find the five characters by which Postgres names an error; empty where there are none."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code if isinstance(code, str) else ""


def first_line(error: BaseException) -> str:
    """Shorten an error of the driver to one line without values."""
    text = str(error).partition("\n")[0].strip()
    return text.partition(">: ")[2] or text or type(error).__name__


def quoted(schema: str) -> str:
    """Quote a schema name that is checked to be a plain identifier."""
    if not IDENTIFIER.fullmatch(schema):
        raise ConfigurationError(f"the schema name {schema!r} is not a plain lower-case identifier")
    return f'"{schema}"'


def split_url(url: str) -> str:
    """Take out of a libpq URL what only libpq understands.

    Raises:
        ConfigurationError: it is none, or names a port that there is not.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ConfigurationError("the database URL must begin with postgresql:// or postgres://")
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in CLIENT_ONLY]
    hosts = parts.netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition(":")[2] for host in hosts] + [value for name, value in query if name == "port"]
    if any(port.isdecimal() and int(port) > HIGHEST_PORT for port in ports):
        raise ConfigurationError(f"the database URL can't be used: ports end at {HIGHEST_PORT}")
    return urlunsplit(parts._replace(query=urlencode(query)))


def connector(
    reveal_url: Callable[[], str],
    application: str,
    command_timeout: timedelta | None = COMMAND_TIMEOUT,
    *,
    by_index: bool = False,
) -> Callable[..., Any]:
    """Make a function that opens one connection as all of ours are; it raises what the driver raises."""
    kind = asyncpg.Connection
    if command_timeout is not None:
        kind = WorkersConnection if by_index else LimitedConnection

    async def connect(*_args: object, **_kwargs: object) -> asyncpg.Connection:
        try:
            url = reveal_url()
        except ConfigurationError as error:  # it was there at the start: its file is being replaced
            raise StoreUnavailableError(str(error)) from error
        try:
            return await asyncpg.connect(
                split_url(url),
                timeout=CONNECT_TIMEOUT.total_seconds(),
                command_timeout=command_timeout.total_seconds() if command_timeout else None,
                connection_class=kind,
                statement_cache_size=0,
                server_settings={"application_name": application},
            )
        except (ValueError, OverflowError, ClientConfigurationError) as error:
            raise ConfigurationError(f"the database URL can't be used: {first_line(error)}") from error

    return connect

"""Connections to Postgres, and what their errors mean.

Made for what stands between companies and their Postgres: a pooler in
transaction mode (no session state, no named prepared statements, limits by
`SET LOCAL`), several hosts, a role that owns nothing, passwords that rotate.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from asyncpg import Record
from asyncpg.exceptions import ClientConfigurationError, InternalClientError
from asyncpg.exceptions import InterfaceError as DriverInterfaceError
from asyncpg.exceptions import PostgresError as DriverError
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy import TextClause, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from broker_worker.cancellation import cancels
from broker_worker.encryption import SYSTEM
from broker_worker.errors import ConfigurationError, StoreBusyError, StoreDataError, StoreUnavailableError

STATEMENT_TIMEOUT = timedelta(seconds=12)
LOCK_TIMEOUT = timedelta(seconds=2)
CONNECT_TIMEOUT = timedelta(seconds=10)
POOL_TIMEOUT = timedelta(seconds=10)
COMMAND_TIMEOUT = timedelta(seconds=15)  # the client's own bound, for a server that does not answer at all
LONG_COMMAND_TIMEOUT = timedelta(days=1)

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
LOCK_NOT_AVAILABLE = "55P03"
READ_ONLY = "25006"  # after a failover the old primary may go on answering as a standby
# whatever the driver raises; a lost connection may show as an error of the operating system
FAULTS = (SQLAlchemyError, DriverError, DriverInterfaceError, InternalClientError, OSError)
UNREADABLE = "the database URL can't be read: are its user and password percent-encoded?"
TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
HIGHEST_PORT = 65535  # of a higher one uvloop takes the rest of a division: another port
IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")

_MILLISECOND = timedelta(milliseconds=1)
LIMITS = {
    "statement_timeout": f"{STATEMENT_TIMEOUT // _MILLISECOND}",
    "lock_timeout": f"{LOCK_TIMEOUT // _MILLISECOND}",
    "idle_in_transaction_session_timeout": f"{STATEMENT_TIMEOUT // _MILLISECOND}",
}
# The planner takes a table that it knows nothing of yet for small, and then scans all of it for each row of a
# batch. What a worker does all day goes by an index on a table of any size.
BY_INDEX = {"enable_seqscan": "off"}
# A worker that vanished without a word would hold what its handlers have locked until their time is over: the
# server finds out within 25 s. Over a socket of the machine itself these mean nothing.
LOST_CLIENT = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
MOST_STATEMENTS = 100  # whose descriptions one connection keeps: ours are fewer, and their texts don't change


class DescribingConnection(asyncpg.Connection):  # type: ignore[misc]  # the driver has no types
    """Has each statement described by the server once, and not before each execution.

    What has no name is parsed by the message that executes it, so nothing is left in the server.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._described: dict[str, PreparedStatement] = {}

    async def prepare(self, query: str, **options: object) -> PreparedStatement:
        """Find a statement's parameters and columns."""
        found = self._described.get(query)
        if found is None:
            found = await super().prepare(query, **options)
            if len(self._described) >= MOST_STATEMENTS:
                del self._described[next(iter(self._described))]
            self._described[query] = found
        return found


class LimitedConnection(DescribingConnection):
    """Bounds what it asks of the server, in as few round trips as what lies between allows.

    Behind a pooler in transaction mode nothing may outlive a transaction: the limits are sent with each
    BEGIN, and each statement is parsed anew. Straight to the server the limits are set once, and the few
    statements that run all day are prepared once.
    """

    settings: Mapping[str, str] = LIMITS
    is_direct = False

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._prepared: dict[str, PreparedStatement] = {}
        self._numbers = count()

    async def settle(self) -> None:
        """Find out what lies between, and set the limits if nothing does."""
        if await _is_direct(self):
            await super().execute(_setting(self.settings, is_local=False))
            self.is_direct = True

    async def execute(self, query: str, *args: object, **options: object) -> str:
        """Execute; what begins a transaction sets its limits as well."""
        if query.startswith("BEGIN") and not self.is_direct:
            query = f"{query} {_setting(self.settings, is_local=True)}"
        status: str = await super().execute(query, *args, **options)
        return status

    async def fetch_alone(self, query: str, *values: object) -> Sequence[Record]:
        """Run one statement as a transaction of its own."""
        rows: Sequence[Record]
        try:
            if self.is_direct:
                rows = await (await self._prepare_once(query)).fetch(*values)
            else:
                async with self.transaction():
                    rows = await (await self.prepare(query)).fetch(*values)
        except (DriverError, InternalClientError):
            # it may be what is kept that is no good any more, after a change of the schema
            self._prepared.pop(query, None)
            self._described.pop(query, None)
            raise
        return rows

    async def _prepare_once(self, query: str) -> PreparedStatement:
        """Keep a statement in the server, under a name."""
        found = self._prepared.get(query)
        if found is None:
            name = f"broker_worker_{next(self._numbers)}"
            found = self._prepared[query] = await asyncpg.Connection.prepare(self, query, name=name)
        return found


class WorkersConnection(LimitedConnection):
    """One whose every statement is to go by an index."""

    settings: Mapping[str, str] = {**LIMITS, **BY_INDEX}


class HandlersConnection(asyncpg.Connection):  # type: ignore[misc]  # the driver has no types
    """One for a handler's transaction, of which only the begin and the end are ours.

    Straight to the server its statements are prepared once, under names: when a table of theirs has changed,
    the server says so. Behind a pooler each is described anew: by what was known before a change of a
    column's type, values would be read and written wrongly, and no error would show it.
    """

    is_direct = False
    opening = ""  # goes with a BEGIN, in one message
    closing = ""  # goes before a COMMIT, in one message: if it raises, nothing is committed

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._numbers = count()

    async def settle(self) -> None:
        """Find out what lies between, and have the server notice when we are gone if nothing does."""
        if await _is_direct(self):
            await super().execute(_setting(LOST_CLIENT, is_local=False))
            self.is_direct = True

    async def prepare(self, query: str, **options: object) -> PreparedStatement:
        """Prepare, under a name where nothing lies between."""
        if self.is_direct:
            options["name"] = f"broker_worker_{next(self._numbers)}"
        return await super().prepare(query, **options)

    async def execute(self, query: str, *args: object, **options: object) -> str:
        """Execute; what begins or ends the transaction takes ours with it."""
        if query.startswith("BEGIN"):
            query = f"{query} {self.opening}"
            options.setdefault("timeout", COMMAND_TIMEOUT.total_seconds())
        elif query.startswith("COMMIT") and self.closing:
            query = f"{self.closing}; {query}"
        status: str = await super().execute(query, *args, **options)
        return status


class Database:
    """An engine with a bounded pool, and transactions with limits."""

    def __init__(self, engine: AsyncEngine, schema: str, reveal_url: Callable[[], str]) -> None:
        self._engine = engine
        self._reveal_url = reveal_url
        self._compiled: dict[TextClause, tuple[str, Sequence[str]]] = {}
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
        `command_timeout` nothing has limits: for handlers' transactions, whose end another sees to.
        `by_index`: no statement is to read a whole table.
        """
        is_handlers = command_timeout is None
        connect_args = {
            "async_creator_fn": connector(reveal_url, application, command_timeout, by_index=by_index),
            "prepared_statement_cache_size": MOST_STATEMENTS if is_handlers else 0,
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
        event.listen(engine.sync_engine, "handle_error", _leave_what_is_read_only)
        if is_handlers:
            event.listen(engine.sync_engine, "connect", _keep_no_statements_behind_a_pooler)
        return cls(engine, schema, reveal_url)

    @contextlib.asynccontextmanager
    async def unhurried(self) -> AsyncIterator[Database]:
        """Open the same once more, with a connection whose statements may take their time: to migrate."""
        database = Database.open(
            self._reveal_url, schema=self.schema_name, pool_size=1, command_timeout=LONG_COMMAND_TIMEOUT
        )
        try:
            yield database
        finally:
            await database.close()

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
        with _translated():
            async with self._engine.begin() as connection:
                yield connection

    async def single(self, statement: TextClause, parameters: Mapping[str, object]) -> Sequence[Record]:
        """Run one statement that is a transaction of its own, and return its rows once it is committed.

        For the statements that run all day: where nothing lies between, it is one round trip, and it goes
        past SQLAlchemy's execution, which takes several times as long. `statement` is compiled once and
        kept: give the same object each time.

        Raises:
            StoreUnavailableError: Postgres could not do it now; whether it was done is not known.
            StoreDataError: Postgres refuses a value.
        """
        sql, names = self._positional(statement)
        with _translated():
            async with self._engine.connect() as connection:
                raw = await connection.get_raw_connection()
                driver = cast("LimitedConnection", raw.driver_connection)
                try:
                    return await driver.fetch_alone(sql, *(parameters[name] for name in names))
                except BaseException as error:
                    # after most answers of the server the connection is as good as before
                    if (
                        driver.is_closed()
                        or not isinstance(error, DriverError)
                        or sqlstate(error) == READ_ONLY
                    ):
                        await connection.invalidate()
                    raise

    def _positional(self, statement: TextClause) -> tuple[str, Sequence[str]]:
        """Return the driver's form of a statement: numbered parameters, and the name of each."""
        found = self._compiled.get(statement)
        if found is None:
            compiled = statement.compile(dialect=self._engine.dialect)
            found = self._compiled[statement] = str(compiled), tuple(compiled.positiontup or ())
        return found

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


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Make errors of ours of the driver's, and the cancellation that it was where one provoked them."""
    cancels_before = cancels()
    try:
        yield
    except FAULTS as error:
        if cancels() > cancels_before:
            raise asyncio.CancelledError from error
        if sqlstate(error) == LOCK_NOT_AVAILABLE:
            raise StoreBusyError(first_line(error)) from error
        if (detail := unavailability(error)) is not None:
            raise StoreUnavailableError(detail) from error
        if (code := sqlstate(error)) and code.startswith("22"):
            # the driver's own error names the values, and causes are shown in logs and rows
            raise StoreDataError(f"{code}: {_without_values(error)}") from None
        raise


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


def _without_values(error: BaseException) -> str:
    """Keep of what is said of a value only what comes before it: it goes into rows and logs."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    said = first_line(cause)
    return re.split(r"""[:"'(]""", said)[0].strip() or type(cause).__name__


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


def _turned(url: str, turns: int) -> str:
    """Move the first so many of a URL's hosts to the end."""
    parts = urlsplit(url)
    before, at, after = parts.netloc.rpartition("@")
    hosts = after.split(",")
    turns %= len(hosts)
    return urlunsplit(parts._replace(netloc=before + at + ",".join(hosts[turns:] + hosts[:turns])))


def tls_of(url: str) -> ssl.SSLContext | None:
    """Do for TLS what the driver leaves undone: libpq's `sslrootcert=system`, and errors that name the file.

    Nothing where the driver reads the parameters itself.

    Raises:
        StoreUnavailableError: a file can't be read; certificates are renewed while we run.
    """
    query = dict(parse_qsl(urlsplit(url).query))
    for name in TLS_FILES:
        if (path := query.get(name, SYSTEM)) != SYSTEM:
            _see(name, Path(path))
    if query.get("sslrootcert") != SYSTEM:
        return None
    context = ssl.create_default_context()  # whom this machine trusts, and the host's name
    if certificate := query.get("sslcert"):
        password = query.get("sslpassword", "")  # without one OpenSSL would ask for it on the terminal
        context.load_cert_chain(certificate, query.get("sslkey"), password=lambda: password)
    return context


def _see(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise StoreUnavailableError(f"{name}={str(path)!r}: {error.strerror}") from error


def connector(
    reveal_url: Callable[[], str],
    application: str,
    command_timeout: timedelta | None = COMMAND_TIMEOUT,
    *,
    by_index: bool = False,
) -> Callable[..., Any]:
    """Make a function that opens one connection as all of ours are; it raises what the driver raises."""
    kind: type[HandlersConnection | LimitedConnection] = HandlersConnection
    if command_timeout is not None:
        kind = WorkersConnection if by_index else LimitedConnection
    turns = 0

    async def connect(*_args: object, **_kwargs: object) -> asyncpg.Connection:
        nonlocal turns
        try:
            url = reveal_url()
        except ConfigurationError as error:  # it was there at the start: its file is being replaced
            raise StoreUnavailableError(str(error)) from error
        try:
            with _explained():
                connection = await asyncpg.connect(
                    _turned(split_url(url), turns),
                    ssl=tls_of(url),
                    timeout=CONNECT_TIMEOUT.total_seconds(),
                    command_timeout=command_timeout.total_seconds() if command_timeout else None,
                    connection_class=kind,
                    statement_cache_size=0,
                    server_settings={"application_name": application},
                )
                await _settled(connection)
        except TimeoutError:
            turns += 1  # the driver has one limit for all hosts: who says nothing is asked last the next time
            raise
        return connection

    return connect


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say which errors of a connect are the URL's fault, and quote nothing of it."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:  # which is also a ValueError
        raise StoreUnavailableError(f"its certificate is refused: {error.verify_message}") from error
    except ClientConfigurationError as error:
        raise ConfigurationError(f"the database URL can't be used: {first_line(error)}") from error
    except (ValueError, OverflowError):  # their texts hold what was taken for a port: half a password
        raise ConfigurationError(UNREADABLE) from None
    except DriverError as error:  # whatever it is that keeps us out may be over at the next try
        raise StoreUnavailableError(f"{sqlstate(error)}: {first_line(error)}") from error


async def _is_direct(connection: asyncpg.Connection) -> bool:
    """Tell whether nothing lies between.

    A pooler has to hand out process ids of its own: by them it tells whose statement to cancel.
    """
    async with connection.transaction():
        server: int = await connection.fetchval("SELECT pg_backend_pid()")
    return server == connection.get_server_pid()  # type: ignore[no-any-return]


def _leave_what_is_read_only(context: ExceptionContext) -> None:
    """Have the whole pool connected anew, by the rules of the URL, when its server takes no more writes."""
    if sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True


def _keep_no_statements_behind_a_pooler(adapted: DBAPIConnection, _: object) -> None:
    """Turn SQLAlchemy's cache off where a statement has no name; it offers that for an engine only."""
    if not cast("HandlersConnection", adapted.driver_connection).is_direct:
        adapted._prepared_statement_cache = None  # noqa: SLF001


async def _settled(connection: HandlersConnection | LimitedConnection) -> None:
    """Settle it in bounded time: a handlers' connection has no limits, and a claim waits for it."""
    limit = asyncio.get_running_loop().call_later(COMMAND_TIMEOUT.total_seconds(), connection.terminate)
    try:
        await connection.settle()
    except BaseException:
        connection.terminate()  # nobody else has it
        raise
    finally:
        limit.cancel()


def _setting(settings: Mapping[str, str], *, is_local: bool) -> str:
    """Write the statement that sets them, for a transaction or for the session."""
    scope = "true" if is_local else "false"
    return "SELECT " + ", ".join(f"set_config('{name}', '{to}', {scope})" for name, to in settings.items())

"""A handler's own transaction, which ends with the outcome: both are committed, or neither is.

The handler works in a session on a connection of a pool of its own. When it returns, what
it owes and then its row are written on the same connection, and one commit ends both. The
row is written last and fenced by the claim, so that no other waits for its lock meanwhile;
and by a setting that lives as long as the transaction, so that one which the handler
has ended by hand is found out. Nothing is tried again here: after a commit whose reply
was lost, the row says what is true to whoever records the next outcome of this claim.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from secrets import token_hex
from typing import Any, NoReturn, cast
from uuid import UUID

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from broker_worker.errors import (
    BrokerWorkerError,
    ClaimLostError,
    CommitUnknownError,
    StoreUnavailableError,
)
from broker_worker.outcome import Succeeded
from broker_worker.outgoing import Owed
from broker_worker.step import Claim
from broker_worker.store.database import (
    FAULTS,
    Database,
    HandlersConnection,
    first_line,
    sqlstate,
    unavailability,
)
from broker_worker.store.outcomes import Ending, Successes

MARK = "broker_worker.claim"  # a setting of the server's, local to the transaction of a handler
MARGIN = timedelta(seconds=10)  # beyond the handler's time: the worker ends it first, and Postgres if not
LONGEST_LIMIT = timedelta(days=24)  # Postgres counts milliseconds in 32 bits
CLAIM_LOST, NOT_BEGUN_HERE = "BW001", "BW002"  # SQLSTATEs of `finish`
ENDED_BEFORE = (
    "the transaction was over before the handler returned: it was committed or rolled back past the "
    "session, or an error of a flush was swallowed outside begin_nested()"
)
ROLLBACK_WAIT = 5.0  # seconds; then the connection is closed instead

# SQLSTATEs of an ending connection: 08, the server's own end, and a transaction that idled for too long
LOST_CLASSES = ("08", "57P")
IDLED = "25P03"

QUOTE = f"$r{token_hex(16)}$"  # begins and ends a constant

_MILLISECOND = timedelta(milliseconds=1)


class NotYoursToEndError(BrokerWorkerError):
    """A handler tried to end the transaction in which the worker records its outcome."""


class HandlerEndedTransactionError(BrokerWorkerError):
    """A handler's transaction was over before the handler was."""


class HandlerSession(AsyncSession):
    """A session on the worker's transaction: everything but its end is the handler's."""

    async def commit(self) -> NoReturn:
        """Refuse: the worker commits."""
        self._refuse("commit")

    async def rollback(self) -> NoReturn:
        """Refuse: an exception rolls back."""
        self._refuse("rollback")

    async def close(self) -> NoReturn:
        """Refuse: the worker closes."""
        self._refuse("close")

    async def reset(self) -> NoReturn:
        """Refuse: it would roll back."""
        self._refuse("reset")

    async def invalidate(self) -> NoReturn:
        """Refuse: it would roll back."""
        self._refuse("invalidate")

    def begin(self) -> NoReturn:
        """Refuse: the transaction has begun."""
        self._refuse("begin")

    def _refuse(self, method: str) -> NoReturn:
        raise NotYoursToEndError(
            f"{method}() is not for a handler's session: the worker commits when the handler returns; "
            "raise to roll back; use begin_nested() for a savepoint"
        )


class Transaction:
    """One handler's; satisfies `ports.HandlerTransaction`."""

    def __init__(
        self,
        connection: AsyncConnection,
        driver: HandlersConnection,
        transaction: RootTransaction,
        *,
        claim: Claim,
        fence: str,
        schema: str,
        successes: Successes,
        owed: Callable[[list[Owed]], None],
    ) -> None:
        self._connection = connection
        self._driver = driver
        self._transaction = transaction
        self._claim = claim
        self._fence = fence
        self._schema = schema
        self._successes = successes
        self._owed = owed
        self._is_committed = False
        self._session = HandlerSession(connection, join_transaction_mode="rollback_only")

    @property
    def session(self) -> AsyncSession:
        return self._session

    async def check(self) -> None:
        """See that the claim holds; locks nothing.

        Raises:
            ClaimLostError: the attempt is not ours any more.
        """
        if not await self._successes.is_claimed(self._connection, self._claim):
            raise ClaimLostError("the attempt is not this worker's any more")

    async def commit(self, outcome: Succeeded) -> None:
        """Flush, write what is owed and the outcome, and commit.

        Raises:
            ClaimLostError: the attempt is not ours any more; nothing is committed.
            HandlerEndedTransactionError: the transaction was over before; what the handler
                committed by hand stays, its outcome is not recorded.
            CommitUnknownError: the connection was lost; recording any outcome shows what is true.
            SQLAlchemyError: what the handler wrote was refused, now or at the commit.
        """
        try:
            owed = await self._write(Ending(self._claim, outcome))
            self._driver.closing = self._finishing(outcome)
            await self._connection.commit()
        except FAULTS as error:
            if (code := sqlstate(error)) == CLAIM_LOST:
                raise ClaimLostError("the attempt is not this worker's any more") from None
            if code == NOT_BEGUN_HERE:
                raise HandlerEndedTransactionError(ENDED_BEFORE) from None
            if _is_connection_lost(error):
                raise CommitUnknownError(f"the connection was lost: {first_line(error)}") from error
            raise
        finally:
            self._driver.closing = ""
        self._is_committed = True
        self._owed(owed)

    async def _write(self, ending: Ending) -> list[Owed]:
        session = self._session
        if session.new or session.dirty or session.deleted:
            await session.flush()
        if not (self._transaction.is_active and self._driver.is_in_transaction()):
            raise HandlerEndedTransactionError(ENDED_BEFORE)
        return await self._successes.owe(self._connection, [ending]) if self._successes.owes([ending]) else []

    def _finishing(self, outcome: Succeeded) -> str:
        """Write the statement that ends the task, for the message that commits: it has no parameters."""
        row = self._claim.row
        drops_body = row.has_body and not self._successes.keeps_payloads
        return (
            f"SELECT {self._schema}.finish({row.key}, {row.epoch}, '{row.worker}', "
            f"{literal(outcome.result)}, '{self._fence}', {drops_body})"
        )

    async def end(self) -> None:
        """Roll back what is not committed, and give the connection back, fit for the next; never raises."""
        if self._is_committed:
            self._session.sync_session.close()  # there is nothing to be said to the server
            await self._connection.close()
            return
        try:
            async with asyncio.timeout(ROLLBACK_WAIT):
                await AsyncSession.close(self._session)
                await self._connection.rollback()
                if self._driver.is_in_transaction():  # a refused COMMIT is over for SQLAlchemy alone
                    await self._driver.execute("ROLLBACK")
        except BaseException as error:
            await self._connection.invalidate()
            if not isinstance(error, FAULTS):
                raise
        finally:
            await self._connection.__aexit__(None, None, None)  # to the end, also while it is cancelled


class Transactions:
    """Opens transactions for handlers; satisfies `ports.Transactions`."""

    def __init__(
        self,
        database: Database,
        *,
        worker: UUID,
        owed: Callable[[list[Owed]], None],
        keeps_payloads: bool,
    ) -> None:
        """Take a `database` of their own, opened without a `command_timeout`; `owed` as for `TaskStore`."""
        self._database = database
        self._owed = owed
        self._successes = Successes(database.schema, worker=worker, keeps_payloads=keeps_payloads)

    @contextlib.asynccontextmanager
    async def open(self, claim: Claim, *, limit: timedelta) -> AsyncIterator[Transaction]:
        """Begin a transaction that may last `limit`; left without `commit`, it is rolled back.

        Raises:
            StoreUnavailableError: at the entry, none could be begun.
        """
        transaction = await self._begin(claim, limit)
        try:
            yield transaction
        finally:
            await transaction.end()

    async def _begin(self, claim: Claim, limit: timedelta) -> Transaction:
        connection: AsyncConnection | None = None
        fence = f"{claim.key}:{claim.epoch}"
        try:
            connection = await self._database.connect()
            driver, begun = await _begin(connection, fence, limit)
        except BaseException as error:
            if connection is not None:  # nobody knows what has begun on it
                await connection.invalidate()
                await connection.__aexit__(None, None, None)
            if isinstance(error, FAULTS) and (detail := unavailability(error)) is not None:
                raise StoreUnavailableError(detail) from error
            raise
        return Transaction(
            connection,
            driver,
            begun,
            claim=claim,
            fence=fence,
            schema=self._database.schema,
            successes=self._successes,
            owed=self._owed,
        )


async def _begin(
    connection: AsyncConnection, fence: str, limit: timedelta
) -> tuple[HandlersConnection, RootTransaction]:
    """Begin, with the handler's own limits in place of ours; a server that is away shows here."""
    milliseconds = min(limit + MARGIN, LONGEST_LIMIT) // _MILLISECOND
    raw = await connection.get_raw_connection()
    driver, adapted = cast("HandlersConnection", raw.driver_connection), cast("Any", raw.dbapi_connection)
    driver.opening = (
        f"SELECT set_config('statement_timeout', '{milliseconds}', true), "
        "set_config('lock_timeout', '0', true), "
        f"set_config('idle_in_transaction_session_timeout', '{milliseconds}', true), "
        f"set_config('{MARK}', '{fence}', true)"
    )
    toolkit = cast("Connection", connection.sync_connection)
    transaction = toolkit.begin()  # says nothing to the server: SQLAlchemy does that with a statement
    try:
        await adapted._start_transaction()  # noqa: SLF001 - the first statement is the handler's, and too late
    except adapted.dbapi.Error as error:
        raise error.__cause__ from None
    return driver, transaction


def literal(result: str | None) -> str:
    """Write a result, JSON, as an SQL constant that holds whatever it holds, by whatever settings."""
    if result is None:
        return "NULL"
    quote = QUOTE
    while quote in result:
        quote = f"$r{token_hex(16)}$"
    return f"{quote}{result}{quote}"


def _is_connection_lost(error: Exception) -> bool:
    """Tell a connection that ended from a refusal: only after that is the end of a commit unknown."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, OSError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return True
    code = sqlstate(error)
    return code.startswith(LOST_CLASSES) or code == IDLED

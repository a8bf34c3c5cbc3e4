"""A handler's own transaction: its effects and its outcome are committed together, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from broker_worker.errors import ClaimLostError, CommitUnknownError, StoreUnavailableError
from broker_worker.local import LocalServerError
from broker_worker.outcome import Outcome, Released, Succeeded
from broker_worker.outgoing import Kind, Owed
from broker_worker.store import database as database_module
from broker_worker.store.database import Database
from broker_worker.store.schema import grants_sql
from broker_worker.store.transactions import (
    HandlerEndedTransactionError,
    NotYoursToEndError,
    Transactions,
)
from tests.support.inbox import Inbox, a_message, opened
from tests.support.pgbouncer import PgBouncer, running_pgbouncer
from tests.support.proxy import Write, proxy_to
from tests.support.services import RunningServers

LIMIT = timedelta(seconds=30)


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """What a handler does."""

    __tablename__ = "effects"
    name: Mapped[str] = mapped_column(primary_key=True)


@dataclass
class World:
    """An inbox, a table of effects beside it, and transactions to fill it in."""

    inbox: Inbox
    url: str
    transactions: Transactions
    database: Database
    owed: list[Owed] = field(default_factory=list)

    async def effects(self) -> list[str]:
        return [row["name"] for row in await self.inbox.fetch("SELECT name FROM effects ORDER BY name")]

    async def state(self) -> str:
        [row] = await self.inbox.fetch("SELECT state FROM {schema}.tasks")
        return str(row["state"])

    async def backends(self) -> int:
        """How many sessions of the transactional pool the server has, idle ones aside."""
        [row] = await self.inbox.fetch(
            """SELECT count(*) AS n FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'handlers' AND state <> 'idle'"""
        )
        return int(row["n"])

    async def is_waiting(self, pattern: str) -> bool:
        """Whether a statement like `pattern` waits for a lock."""
        rows = await self.inbox.fetch(
            """SELECT 1 FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE :pattern""",
            pattern=pattern,
        )
        return bool(rows)

    async def take_over(self) -> None:
        """Let another worker have the task."""
        await self.inbox.execute("UPDATE {schema}.tasks SET epoch = epoch + 1, worker = gen_random_uuid()")


@asynccontextmanager
async def world(
    database_url: str, *, through: str | None = None, pool_size: int = 2, keeps_payloads: bool = False
) -> AsyncIterator[World]:
    """Open all of it; transactions reach the database by the address `through`."""
    async with opened(database_url) as inbox:
        database = Database.open(
            lambda: through or database_url,
            schema="broker_worker",
            pool_size=pool_size,
            application="handlers",
            command_timeout=None,
        )
        owed: list[Owed] = []
        transactions = Transactions(
            database, worker=inbox.worker, owed=owed.extend, keeps_payloads=keeps_payloads
        )
        await inbox.execute("CREATE TABLE effects (name text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        await inbox.execute("GRANT ALL ON effects TO PUBLIC")
        try:
            yield World(inbox, database_url, transactions, database, owed)
        finally:
            await database.close()


async def insert(session: object, name: str = "paid") -> AsyncSession:
    """Have the effect of a handler."""
    assert isinstance(session, AsyncSession)
    await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": name})
    return session


# --- together, or not at all -----------------------------------------------------------


async def test_effects_and_outcome_are_committed_together(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await insert(transaction.session)
            seen_before = (await here.effects(), await here.state())
            await transaction.commit(Succeeded('{"a": 1}'))

        [row] = await here.inbox.fetch("SELECT state, result, finished_at FROM {schema}.tasks")
        assert seen_before == ([], "running")
        assert await here.effects() == ["paid"]
        assert (row["state"], row["result"]) == ("succeeded", {"a": 1})
        assert row["finished_at"] is not None
        assert await here.inbox.tasks.record(claim, Succeeded('{"a": 1}')) == Succeeded()
        assert await here.inbox.tasks.is_completed(claim)


async def test_what_was_only_added_to_the_session_is_flushed_into_the_commit(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            assert isinstance(transaction.session, AsyncSession)
            transaction.session.add(Effect(name="added"))
            await transaction.commit(Succeeded())

        assert await here.effects() == ["added"]


async def test_a_handler_that_raises_leaves_neither(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async def handle() -> None:
            async with here.transactions.open(claim, limit=LIMIT) as transaction:
                await insert(transaction.session)
                raise ValueError("no money")

        with pytest.raises(ValueError, match="no money"):
            await handle()

        assert (await here.effects(), await here.state()) == ([], "running")


async def test_a_transaction_left_without_a_commit_leaves_neither(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await insert(transaction.session)

        assert (await here.effects(), await here.state()) == ([], "running")


async def test_a_claim_lost_meanwhile_takes_the_effects_with_it(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message(reply_to="answers"))

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await insert(transaction.session)
            await here.take_over()
            with pytest.raises(ClaimLostError):
                await transaction.commit(Succeeded())

        assert (await here.effects(), await here.state(), here.owed) == ([], "running", [])
        assert await here.inbox.count("outbox") == 0


async def test_a_check_finds_out_that_the_claim_is_lost_and_locks_nothing(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await transaction.check()
            await here.inbox.fetch("SELECT 1 FROM {schema}.tasks FOR UPDATE NOWAIT")
            await here.take_over()
            with pytest.raises(ClaimLostError):
                await transaction.check()


async def test_the_reply_is_owed_by_the_same_commit(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message(reply_to="answers", correlation_id="c-1"))

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await transaction.commit(Succeeded("7"))

        [owed] = here.owed
        [row] = await here.inbox.fetch("SELECT id, kind, worker FROM {schema}.outbox")
        assert (owed.id, owed.outgoing.kind, owed.outgoing.routing_key) == (row["id"], Kind.REPLY, "answers")
        assert b'"result": 7' in owed.outgoing.body
        assert row["worker"] == here.inbox.worker


@pytest.mark.parametrize(("keeps_payloads", "count"), [(True, 1), (False, 0)])
async def test_the_body_is_kept_as_the_setting_says(
    database_url: str, keeps_payloads: bool, count: int
) -> None:
    async with world(database_url, keeps_payloads=keeps_payloads) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await transaction.commit(Succeeded())

        assert await here.inbox.count("payloads") == count


# --- what the session refuses ------------------------------------------------------------

REFUSED: dict[str, Callable[[AsyncSession], Awaitable[object]]] = {
    "commit": lambda session: session.commit(),
    "rollback": lambda session: session.rollback(),
    "close": lambda session: session.close(),
    "aclose": lambda session: session.aclose(),
    "reset": lambda session: session.reset(),
    "invalidate": lambda session: session.invalidate(),
    "begin": lambda session: _entered(session.begin),
    "async with": lambda session: _entered(lambda: session),
}


async def _entered(manager: Callable[[], object]) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(manager())  # type: ignore[arg-type]


@pytest.mark.parametrize("way", REFUSED)
async def test_a_handler_can_not_end_its_transaction_by_the_session(database_url: str, way: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            session = await insert(transaction.session)
            with pytest.raises(NotYoursToEndError, match=r"raise to roll back; use begin_nested\(\)"):
                await REFUSED[way](session)
            await transaction.commit(Succeeded())

        assert (await here.effects(), await here.state()) == (["paid"], "succeeded")


ENDED: dict[str, Callable[[AsyncSession], Awaitable[object]]] = {
    "COMMIT": lambda session: session.execute(text("COMMIT")),
    "ROLLBACK": lambda session: session.execute(text("ROLLBACK")),
    "COMMIT AND CHAIN": lambda session: session.execute(text("COMMIT AND CHAIN")),
    "COMMIT; BEGIN": lambda session: _each(session, "COMMIT", "BEGIN"),
    "connection.commit": lambda session: _of_connection(session, commits=True),
    "connection.rollback": lambda session: _of_connection(session, commits=False),
}


async def _each(session: AsyncSession, *statements: str) -> None:
    for statement in statements:
        await session.execute(text(statement))


async def _of_connection(session: AsyncSession, *, commits: bool) -> None:
    connection = await session.connection()
    await (connection.commit() if commits else connection.rollback())
    await connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("way", ENDED)
async def test_a_transaction_ended_past_the_session_is_found_out_and_leaves_no_outcome(
    database_url: str, way: str
) -> None:
    async with world(database_url, pool_size=1) as here:
        claim = await here.inbox.claim(a_message(reply_to="answers"))

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await ENDED[way](await insert(transaction.session))
            with pytest.raises(HandlerEndedTransactionError):
                await transaction.commit(Succeeded())

        assert await here.state() == "running"
        assert await here.inbox.count("outbox") == 0
        assert await here.effects() == (["paid"] if "commit" in way.lower() else [])
        async with here.transactions.open(claim, limit=LIMIT) as transaction:  # the connection is fit for use
            await insert(transaction.session, "again")
            await transaction.commit(Succeeded())
        assert await here.state() == "succeeded"


async def test_a_savepoint_takes_back_what_is_in_it_alone(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            session = await insert(transaction.session)
            with suppress(IntegrityError):
                async with session.begin_nested():
                    await insert(session, "bad")
                    await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
                    await insert(session, "bad")
            async with session.begin_nested():
                await insert(session, "good")
            await transaction.commit(Succeeded())

        assert (await here.effects(), await here.state()) == (["good", "paid"], "succeeded")


async def test_the_session_is_of_no_use_after_the_end(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            session = transaction.session
            await transaction.commit(Succeeded())

        with pytest.raises(Exception, match="closed"):
            await insert(session, "late")

        assert await here.effects() == []


# --- what the database refuses ---------------------------------------------------------


async def test_a_constraint_that_fails_at_the_commit_is_the_handlers_error(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await insert(transaction.session)
            await insert(transaction.session)
            with pytest.raises(IntegrityError):
                await transaction.commit(Succeeded())

        assert (await here.effects(), await here.state()) == ([], "running")


async def test_a_flush_that_fails_is_the_handlers_error(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            assert isinstance(transaction.session, AsyncSession)
            transaction.session.add(Effect(name="a \0 that Postgres refuses"))
            with pytest.raises(DBAPIError):
                await transaction.commit(Succeeded())

        assert (await here.effects(), await here.state()) == ([], "running")


@pytest.mark.parametrize("is_flush", [True, False], ids=["flush", "statement"])
async def test_an_error_swallowed_outside_a_savepoint_commits_nothing(
    database_url: str, is_flush: bool
) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            session = await insert(transaction.session)
            with suppress(DBAPIError):
                if is_flush:
                    session.add(Effect(name="\0"))
                    await session.flush()
                await session.execute(text("SELECT 1 / 0"))
            with pytest.raises((HandlerEndedTransactionError, DBAPIError)):
                await transaction.commit(Succeeded())

        assert (await here.effects(), await here.state()) == ([], "running")


async def settings(session: AsyncSession, *names: str) -> list[str]:
    """What the server says of its settings for this transaction."""
    return [(await session.execute(text(f"SHOW {name}"))).scalar_one() for name in names]


async def test_a_statement_may_last_as_long_as_the_handler_and_no_longer(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=timedelta(hours=1)) as transaction:
            session = await insert(transaction.session)
            shown = await settings(
                session, "statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"
            )

        assert shown == ["3610s", "3610s", "0"]


async def test_a_limit_longer_than_postgres_can_count_is_the_longest_that_it_can(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=timedelta(days=1000)) as transaction:
            session = await insert(transaction.session)
            shown = await settings(session, "statement_timeout")

        assert shown == ["24d"]


async def test_the_server_asks_within_seconds_whether_a_handler_s_worker_is_still_there(
    database_url: str,
) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=timedelta(hours=1)) as transaction:
            session = await insert(transaction.session)
            shown = await settings(
                session, "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"
            )

        assert shown == ["10", "5", "3"]


async def amounts_read_before_and_after_a_change(here: World) -> list[str]:
    """Read a column, change its type and read it again: what was seen, or the name of what was raised."""
    await here.inbox.execute("CREATE TABLE amounts (n bigint)")
    await here.inbox.execute("INSERT INTO amounts VALUES (7)")
    await here.inbox.execute("GRANT SELECT ON amounts TO PUBLIC")
    seen: list[str] = []
    for number in range(3):
        claim = await here.inbox.claim(a_message(f"t-{number}"))
        try:
            async with here.transactions.open(claim, limit=LIMIT) as transaction:
                seen.append(
                    repr((await transaction.session.execute(text("SELECT n FROM amounts"))).scalar_one())
                )
                await transaction.commit(Succeeded())
        except DBAPIError as error:
            seen.append(type(error).__name__)
        if number == 0:
            await here.inbox.execute("ALTER TABLE amounts ALTER n TYPE double precision")
    return seen


async def test_a_column_that_changed_its_type_is_told_once_and_then_read_by_the_new_one(
    database_url: str,
) -> None:
    async with world(database_url, pool_size=1) as here:
        assert await amounts_read_before_and_after_a_change(here) == ["7", "NotSupportedError", "7.0"]


async def test_behind_a_pooler_a_column_that_changed_its_type_is_read_by_the_new_one(
    database_url: str, pgbouncer: PgBouncer
) -> None:
    async with world(database_url, through=pgbouncer.url(database_url), pool_size=1) as here:
        for statement in grants_sql("broker_worker", pgbouncer.role).splitlines():
            await here.inbox.execute(statement)

        assert await amounts_read_before_and_after_a_change(here) == ["7", "7.0", "7.0"]


# --- connections -----------------------------------------------------------------------


async def test_a_transaction_waits_for_a_connection_of_the_pool(database_url: str) -> None:
    async with world(database_url, pool_size=1) as here:
        claims = [await here.inbox.claim(a_message(f"t-{number}")) for number in range(5)]

        async def work(number: int) -> None:
            async with here.transactions.open(claims[number], limit=LIMIT) as transaction:
                await insert(transaction.session, str(number))
                await transaction.commit(Succeeded())

        await asyncio.gather(*map(work, range(5)))

        assert await here.effects() == ["0", "1", "2", "3", "4"]


async def test_without_a_connection_the_handler_does_not_begin(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "POOL_TIMEOUT", timedelta(milliseconds=1))
    async with world(database_url, pool_size=1) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT):
            with pytest.raises(StoreUnavailableError):
                await here.transactions.open(claim, limit=LIMIT).__aenter__()


async def test_a_cancelled_statement_is_ended_and_the_pool_goes_on(database_url: str) -> None:
    async with world(database_url, pool_size=1) as here:
        claim = await here.inbox.claim(a_message())
        begun = asyncio.Event()

        async def work() -> None:
            async with here.transactions.open(claim, limit=LIMIT) as transaction:
                session = await insert(transaction.session)
                begun.set()
                await session.execute(text("SELECT pg_sleep(1000)"))

        working = asyncio.create_task(work())
        await begun.wait()
        await until(lambda: _equals(here.backends, 1))
        working.cancel()
        await asyncio.wait([working])

        assert working.cancelled()
        await until(lambda: _equals(here.backends, 0))
        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await insert(transaction.session, "again")
            await transaction.commit(Succeeded())
        assert await here.effects() == ["again"]


async def test_a_handler_left_behind_in_a_statement_loses_its_connection(database_url: str) -> None:
    async with world(database_url, pool_size=1) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            session = await insert(transaction.session)
            left = asyncio.create_task(session.execute(text("SELECT pg_sleep(1000)")))
            await until(lambda: _equals(here.backends, 1))
        await asyncio.wait([left])

        assert left.exception() is not None
        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await transaction.commit(Succeeded())
        assert (await here.effects(), await here.state()) == ([], "succeeded")


async def test_a_transaction_passes_through_a_pooler_in_transaction_mode(
    database_url: str, pgbouncer: PgBouncer
) -> None:
    async with world(database_url, through=pgbouncer.url(database_url), pool_size=10) as here:
        for statement in grants_sql("broker_worker", pgbouncer.role).splitlines():
            await here.inbox.execute(statement)
        claims = [await here.inbox.claim(a_message(f"t-{number}")) for number in range(20)]

        async def work(number: int) -> None:
            async with here.transactions.open(claims[number], limit=LIMIT) as transaction:
                await insert(transaction.session, f"{number:02}")
                await transaction.commit(Succeeded())

        await asyncio.gather(*map(work, range(20)))

        assert await here.effects() == [f"{number:02}" for number in range(20)]
        states = await here.inbox.fetch("SELECT DISTINCT state FROM {schema}.tasks")
        assert [row["state"] for row in states] == ["succeeded"]


@pytest.fixture(scope="module")
def pgbouncer(running_servers: RunningServers) -> Iterator[PgBouncer]:
    try:
        with running_pgbouncer(running_servers.servers.database_url) as bouncer:
            yield bouncer
    except LocalServerError as error:
        pytest.fail(str(error), pytrace=False)


# --- a commit whose reply is lost ------------------------------------------------------


QUERY, ANSWER = b"COMMIT;\0", b"COMMIT\0"  # as the driver asks, and as the server says that it is done


class Cutter:
    """Cuts a connection instead of carrying a message."""

    cut_at: bytes | None = None

    async def from_client(self, data: bytes, write: Write) -> None:
        await self._carry(data, write)

    async def from_server(self, data: bytes, write: Write) -> None:
        await self._carry(data, write)

    async def _carry(self, data: bytes, write: Write) -> None:
        if self.cut_at is not None and self.cut_at in data:
            raise ConnectionResetError
        await write(data)


@asynccontextmanager
async def cutter_before(database_url: str) -> AsyncIterator[tuple[Cutter, str]]:
    """Put a cutter before a database: itself, and the address that leads through it."""
    address = urlsplit(database_url)
    cutter = Cutter()
    async with proxy_to(address.hostname or "", address.port or 5432, lambda: cutter) as proxy:
        credentials, at, _ = address.netloc.rpartition("@")
        through = address._replace(netloc=f"{credentials}{at}127.0.0.1:{proxy.port}", query="sslmode=disable")
        yield cutter, urlunsplit(through)


@pytest.mark.parametrize(
    ("cut_at", "shown"), [(QUERY, Released()), (ANSWER, Succeeded())], ids=["not committed", "committed"]
)
async def test_a_commit_whose_reply_is_lost_has_one_effect_in_the_end(
    database_url: str, cut_at: bytes, shown: Outcome
) -> None:
    async with cutter_before(database_url) as (cutter, through), world(database_url, through=through) as here:
        claim = await here.inbox.claim(a_message(reply_to="answers"))

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await insert(transaction.session)
            cutter.cut_at = cut_at
            with pytest.raises(CommitUnknownError):
                await transaction.commit(Succeeded())
        cutter.cut_at = None
        recorded = await here.inbox.tasks.record(claim, Released())
        if recorded == Released():
            again = await here.inbox.claim(a_message(reply_to="answers", epoch=claim.epoch))
            async with here.transactions.open(again, limit=LIMIT) as transaction:
                await insert(transaction.session)
                await transaction.commit(Succeeded())

        assert recorded == shown
        assert (await here.effects(), await here.state()) == (["paid"], "succeeded")
        kinds = await here.inbox.fetch("SELECT kind FROM {schema}.outbox WHERE kind = 'reply'")
        assert len(kinds) == 1
        [row] = await here.inbox.fetch("SELECT attempt FROM {schema}.tasks")
        assert row["attempt"] == 1


async def test_a_connection_lost_before_the_commit_is_nobodys_fault(database_url: str) -> None:
    async with cutter_before(database_url) as (cutter, through), world(database_url, through=through) as here:
        claim = await here.inbox.claim(a_message())

        async with here.transactions.open(claim, limit=LIMIT) as transaction:
            await insert(transaction.session)
            cutter.cut_at = b".finish("
            with pytest.raises(CommitUnknownError):
                await transaction.commit(Succeeded())

        assert await here.inbox.tasks.record(claim, Released()) == Released()
        assert (await here.effects(), await here.state()) == ([], "queued")


async def test_an_outcome_waits_for_a_transaction_whose_commit_is_on_its_way(database_url: str) -> None:
    """What its fenced update holds, nobody ends in another way."""
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        await here.inbox.execute(
            """CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$"""
        )
        await here.inbox.execute(
            """CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION wait()"""
        )

        async with here.transactions.open(claim, limit=LIMIT) as transaction, asyncio.TaskGroup() as group:
            await insert(transaction.session)
            async with here.inbox.database.transaction() as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(1)"))
                group.create_task(transaction.commit(Succeeded()))
                await until(lambda: here.is_waiting("%COMMIT%"))
                recording = group.create_task(here.inbox.tasks.record(claim, Released()))
                others = [await here.inbox.claim(a_message(f"other-{number}")) for number in (1, 2)]
                for other in others:  # which the locked row does not hold up
                    assert await here.inbox.tasks.record(other, Released()) == Released()
                assert not recording.done()

        assert recording.result() == Succeeded()
        [row] = await here.inbox.fetch("SELECT state FROM {schema}.tasks WHERE message_id = 't-1'")
        assert (await here.effects(), row["state"]) == (["paid"], "succeeded")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def _equals(look: Callable[[], Awaitable[int]], number: int) -> bool:
    return await look() == number

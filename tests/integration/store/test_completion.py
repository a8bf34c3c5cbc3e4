"""`complete`: a task ends in a transaction of its handler's own, by a driver strange to the worker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest

from broker_worker.context import Completion
from broker_worker.outcome import Released, Succeeded
from broker_worker.outgoing import Kind
from broker_worker.step import Claim
from broker_worker.store.completion import completion
from broker_worker.store.pruning import PruningStore
from broker_worker.store.schema import grants_sql
from broker_worker.task import Task, TaskState
from tests.support.inbox import Inbox, a_message, opened
from tests.support.services import execute

CLAIM_LOST = "BW001"


@dataclass
class World:
    """An inbox, and a table of effects beside it, to be filled by psycopg."""

    inbox: Inbox
    url: str

    def completion(self, claim: Claim, result: str | None = None) -> Completion:
        return completion(claim, result, schema="broker_worker", worker=self.inbox.worker)

    async def handle(self, completion: Completion, *, url: str | None = None) -> None:
        """Do what a plain function would: an effect and the task's end in one transaction."""
        await asyncio.to_thread(pay, url or self.url, completion)

    async def row(self) -> dict[str, object]:
        [row] = await self.inbox.fetch("SELECT state, result, finished_at, has_body FROM {schema}.tasks")
        return dict(row)

    async def effects(self) -> int:
        [row] = await self.inbox.fetch("SELECT count(*) AS n FROM effects")
        return int(row["n"])


def pay(url: str, completion: Completion) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO effects VALUES ('paid')")
        connection.execute(completion.sql, completion.parameters)


@asynccontextmanager
async def world(database_url: str) -> AsyncIterator[World]:
    async with opened(database_url) as inbox:
        await inbox.execute("CREATE TABLE effects (name text)")
        await inbox.execute("GRANT ALL ON effects TO PUBLIC")
        yield World(inbox, database_url)


async def test_a_task_ends_with_the_transaction_of_another_driver(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        await here.handle(here.completion(claim, '{"a": "ä%s"}'))

        row = await here.row()
        assert (row["state"], row["result"], row["has_body"]) == ("succeeded", {"a": "ä%s"}, False)
        assert row["finished_at"] is not None
        assert await here.effects() == 1
        assert await here.inbox.tasks.is_completed(claim)
        assert await here.inbox.tasks.record(claim, Released()) == Succeeded()
        assert await here.inbox.count("outbox") == 0


async def test_a_transaction_that_is_rolled_back_ends_nothing(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        statement = here.completion(claim)

        def handle() -> None:
            with psycopg.connect(here.url) as connection:
                connection.execute(statement.sql, statement.parameters)
                connection.rollback()

        await asyncio.to_thread(handle)

        assert (await here.row())["state"] == "running"
        assert not await here.inbox.tasks.is_completed(claim)


@pytest.mark.parametrize(
    "loss",
    [
        "UPDATE {schema}.tasks SET epoch = epoch + 1",
        "UPDATE {schema}.tasks SET worker = gen_random_uuid()",
        "UPDATE {schema}.tasks SET state = 'cancelled'",
        "DELETE FROM {schema}.tasks",
    ],
)
async def test_a_lost_claim_raises_in_the_database_and_the_transaction_can_not_commit(
    database_url: str, loss: str
) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        await here.inbox.execute(loss)
        statement = here.completion(claim)

        def handle() -> str | None:
            with psycopg.connect(here.url) as connection:
                connection.execute("INSERT INTO effects VALUES ('paid')")
                with pytest.raises(psycopg.Error, match="not this worker's any more") as raised:
                    connection.execute(statement.sql, statement.parameters)
                connection.commit()  # of a transaction that has failed: Postgres rolls it back
            return raised.value.sqlstate

        assert await asyncio.to_thread(handle) == CLAIM_LOST
        assert await here.effects() == 0
        assert not await here.inbox.tasks.is_completed(claim)


async def test_a_second_completion_is_refused(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        await here.handle(here.completion(claim, "1"))

        with pytest.raises(psycopg.Error, match="not this worker's any more"):
            await here.handle(here.completion(claim, "2"))

        assert (await here.row())["result"] == 1
        assert await here.effects() == 1


async def test_another_worker_can_not_complete_it(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())

        with pytest.raises(psycopg.Error, match="not this worker's any more"):
            await here.handle(completion(claim, None, schema="broker_worker", worker=uuid4()))

        assert (await here.row())["state"] == "running"


async def test_the_reply_waits_for_any_relay(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message(reply_to="answers", correlation_id="c-1"))

        await here.handle(here.completion(claim, "7"))

        [owed] = await here.inbox.relay()
        assert (owed.outgoing.kind, owed.outgoing.routing_key) == (Kind.REPLY, "answers")
        assert owed.outgoing.properties.correlation_id == "c-1"
        assert b'"state": "succeeded"' in owed.outgoing.body
        assert b'"result": 7' in owed.outgoing.body


@pytest.mark.parametrize(("is_awaited", "count"), [(True, 1), (False, 0)])
async def test_who_waits_for_the_task_is_told(database_url: str, is_awaited: bool, count: int) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        await here.inbox.execute("UPDATE {schema}.tasks SET is_awaited = :awaited", awaited=is_awaited)

        def listen_while(statement: Completion) -> list[str]:
            with psycopg.connect(here.url, autocommit=True) as connection:
                connection.execute("LISTEN broker_worker")
                pay(here.url, statement)
                connection.execute("NOTIFY broker_worker, 'last'")
                heard = connection.notifies(timeout=20, stop_after=count + 1)
                return [notice.payload for notice in heard]

        heard = await asyncio.to_thread(listen_while, here.completion(claim))

        assert heard == [f"ended:{claim.key}"] * count + ["last"]


async def test_a_body_that_is_there_is_left_to_the_pruner(database_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        await here.inbox.tasks.record(claim, Released())
        again = await here.inbox.claim(a_message(epoch=claim.epoch))

        await here.handle(here.completion(again))
        left = await here.inbox.count("payloads")
        pruned = await PruningStore(here.inbox.database).prune_payloads()

        assert (left, pruned.count, await here.inbox.count("payloads")) == (1, 1, 0)


def test_its_parameters_are_what_any_driver_can_send() -> None:
    claim = a_claim(reply_to="answers")

    built = completion(claim, "1", schema="jobs", worker=UUID(int=7))

    assert built.sql.startswith('SELECT "jobs".complete(')
    assert built.sql.count("%s") == built.sql.count("%") == len(built.parameters)
    assert [type(value) for value in built.parameters] == [int, int, str, str, str]


def test_without_result_and_reply_its_parameters_are_null() -> None:
    built = completion(a_claim(), None, schema="jobs", worker=UUID(int=7))

    assert built.parameters[3:] == (None, None)


def a_claim(**fields: str) -> Claim:
    message = a_message()
    row = Task(1, message.task, TaskState.RUNNING, 1, 3, 1, UUID(int=7), b"", **fields)  # type: ignore[arg-type]
    return Claim(row, message)


# --- a role that owns nothing ------------------------------------------------------------


@pytest.fixture
def role_url(database_url: str) -> Iterator[str]:
    """The database for a role that has what `grants` prints and nothing more."""
    role = f"runtime_{secrets.token_hex(6)}"
    execute(database_url, f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    for statement in grants_sql("broker_worker", role).splitlines():
        execute(database_url, statement)
    parts = urlsplit(database_url)
    yield urlunsplit(parts._replace(netloc=f"{role}:{role}@{parts.hostname}:{parts.port}"))
    execute(database_url, f"DROP OWNED BY {role}")
    execute(database_url, f"DROP ROLE {role}")


async def test_a_runtime_role_completes_with_its_own_rights(database_url: str, role_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message(reply_to="answers"))

        await here.handle(here.completion(claim), url=role_url)

        assert (await here.row())["state"] == "succeeded"
        assert await here.inbox.count("outbox") == 1


async def test_nobody_else_gains_rights_by_it(database_url: str, role_url: str) -> None:
    async with world(database_url) as here:
        claim = await here.inbox.claim(a_message())
        role = urlsplit(role_url).username
        await here.inbox.execute(f"REVOKE UPDATE ON broker_worker.tasks FROM {role}")

        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await here.handle(here.completion(claim), url=role_url)

        assert (await here.row())["state"] == "running"

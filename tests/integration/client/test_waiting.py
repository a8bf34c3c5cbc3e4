"""Waiting for the end of a task: by notification, and by looking where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker_worker.client import AmbiguousTaskError, Client, StoreUnavailableError, TaskState
from broker_worker.client.waiting import APPLICATION, Pace, Tasks, Waiting
from broker_worker.errors import ConfigurationError
from broker_worker.outcome import Dead, Outcome, Reason, Released, Succeeded
from broker_worker.secret import Secret
from broker_worker.store.interventions import cancel_task
from broker_worker.store.queries import TaskLookup
from broker_worker.store.schema import grants_sql
from tests.support.inbox import Inbox, a_failure, a_message, opened
from tests.support.pgbouncer import PgBouncer
from tests.support.services import execute

NEVER = 3600.0  # seconds; longer than any test
THE_TASK = TaskLookup("t-1")
ON_NOTICE_ONLY = Pace(first=NEVER, longest=NEVER, behind=NEVER)


@asynccontextmanager
async def waiting_for_notices(database_url: str, direct_url: str = "") -> AsyncIterator[Waiting]:
    """Something that never looks by itself."""
    tasks = Tasks(lambda: database_url, schema="broker_worker")
    direct = Secret("direct_url", value=direct_url or database_url)
    waiting = Waiting(tasks, direct, schema="broker_worker", pace=ON_NOTICE_ONLY)
    try:
        yield waiting
    finally:
        await waiting.close()
        await tasks.close()


async def until_awaited(inbox: Inbox, count: int = 1) -> None:
    """Wait until so many rows are marked."""
    async with asyncio.timeout(30):
        while (await marked(inbox)) < count:
            await asyncio.sleep(0.01)


async def marked(inbox: Inbox) -> int:
    return len(await inbox.fetch("SELECT key FROM {schema}.tasks WHERE is_awaited"))


async def end_connections(inbox: Inbox, *, kind: str = "%") -> int:
    """End the client's own, those whose last statement was like `kind`."""
    ended = await inbox.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = :application AND query LIKE :kind AND datname = current_database()",
        application=APPLICATION,
        kind=kind,
    )
    return len(ended)


@pytest.fixture
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last statement of a connection that listens be the one by which it is known."""
    monkeypatch.setattr("broker_worker.store.notices.CHECK_INTERVAL", NEVER)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Succeeded("7"), TaskState.SUCCEEDED),
        (Dead(Reason.GAVE_UP, a_failure()), TaskState.DEAD),
    ],
    ids=["succeeded", "dead"],
)
async def test_a_notification_alone_ends_a_wait(
    database_url: str, outcome: Outcome, state: TaskState
) -> None:
    async with opened(database_url) as inbox, waiting_for_notices(database_url) as waiting:
        claim = await inbox.claim(a_message())
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(waiting.wait(THE_TASK))
            await until_awaited(inbox)

            await inbox.tasks.record(claim, outcome)

            async with asyncio.timeout(30):
                status = await wait

    assert status.state is state


async def test_a_cancel_ends_a_wait(database_url: str) -> None:
    async with opened(database_url) as inbox, waiting_for_notices(database_url) as waiting:
        await inbox.postpone(a_message())
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(waiting.wait(THE_TASK))
            await until_awaited(inbox)

            await cancel_task(inbox.database, THE_TASK, actor="ada")

            async with asyncio.timeout(30):
                status = await wait

    assert status.state is TaskState.CANCELLED


async def test_a_release_is_no_end(database_url: str) -> None:
    async with opened(database_url) as inbox, waiting_for_notices(database_url) as waiting:
        claim = await inbox.claim(a_message())
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(waiting.wait(THE_TASK))
            await until_awaited(inbox)

            await inbox.tasks.record(claim, Released())
            await inbox.succeed(a_message(epoch=claim.epoch))

            async with asyncio.timeout(30):
                status = await wait

    assert (status.state, status.attempt) == (TaskState.SUCCEEDED, 1)


@pytest.mark.usefixtures("_unchecked")
async def test_no_end_is_missed_when_the_connection_that_listens_is_cut(database_url: str) -> None:
    async with opened(database_url) as inbox, waiting_for_notices(database_url) as waiting:
        claim = await inbox.claim(a_message())
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(waiting.wait(THE_TASK))
            await until_awaited(inbox)

            assert await end_connections(inbox, kind="LISTEN%") == 1
            await inbox.tasks.record(claim, Succeeded())

            async with asyncio.timeout(30):
                status = await wait

    assert status.state is TaskState.SUCCEEDED


@pytest.mark.usefixtures("_unchecked")
async def test_waiters_share_one_connection_that_listens(database_url: str) -> None:
    async with opened(database_url) as inbox, waiting_for_notices(database_url) as waiting:
        ids = [f"t-{number}" for number in range(30)]
        claims = [await inbox.claim(a_message(id_)) for id_ in ids]
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(waiting.wait(TaskLookup(id_))) for id_ in ids]
            await until_awaited(inbox, len(ids))
            listening = await inbox.fetch(
                "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )

            for claim in claims:
                await inbox.tasks.record(claim, Succeeded())

            async with asyncio.timeout(30):
                statuses = [await wait for wait in waits]

    assert [status.id for status in statuses] == ids
    assert len(listening) == 1


async def test_a_task_that_has_ended_before_is_not_waited_for_nor_marked(database_url: str) -> None:
    async with opened(database_url) as inbox, waiting_for_notices(database_url) as waiting:
        await inbox.succeed(a_message())

        async with asyncio.timeout(30):
            statuses = [await waiting.wait(THE_TASK) for _ in range(2)]

        assert [status.state for status in statuses] == [TaskState.SUCCEEDED] * 2
        assert await marked(inbox) == 0


async def waited_for(client: Client, inbox: Inbox, *, marks: bool) -> TaskState:
    """Wait with `client` for the end of a running task; it comes once the row is marked, if it will be."""
    claim = await inbox.claim(a_message())
    async with asyncio.TaskGroup() as group:
        wait = group.create_task(client.wait("t-1", timeout=50))
        if marks:
            await until_awaited(inbox)
        await inbox.tasks.record(claim, Succeeded())
        return (await wait).state


async def test_without_a_direct_url_a_wait_looks_and_marks_nothing(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        claim = await inbox.claim(a_message())
        with pytest.raises(TimeoutError):
            await client.wait("t-1", timeout=1)
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(client.wait("t-1", timeout=50))

            await inbox.tasks.record(claim, Succeeded())

        assert (await wait).state is TaskState.SUCCEEDED
        assert await marked(inbox) == 0


async def test_behind_a_transaction_pooler_a_wait_ends_all_the_same(
    database_url: str, pgbouncer: PgBouncer
) -> None:
    for statement in grants_sql("broker_worker", pgbouncer.role).splitlines():
        execute(database_url, statement)
    url = pgbouncer.url(database_url)
    async with opened(database_url) as inbox, Client(database_url=url, direct_url=url) as client:
        assert await waited_for(client, inbox, marks=True) is TaskState.SUCCEEDED


async def test_a_server_to_listen_on_that_is_not_there_does_not_keep_a_wait_from_ending(
    database_url: str,
) -> None:
    nowhere = "postgresql://user@127.0.0.1:1/app"
    async with opened(database_url) as inbox, Client(database_url=database_url, direct_url=nowhere) as client:
        assert await waited_for(client, inbox, marks=False) is TaskState.SUCCEEDED


async def test_an_unusable_url_to_listen_on_is_told(database_url: str) -> None:
    async with opened(database_url), Client(database_url=database_url, direct_url="mysql://no") as client:
        with pytest.raises(ConfigurationError, match="the database URL must begin with"):
            await client.wait("t-1", timeout=50)


async def test_a_task_that_no_worker_has_received_yet_is_waited_for(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(client.wait("t-1", timeout=50))
            assert await client.status("t-1") is None

            await inbox.succeed(a_message(), "7")

        assert (await wait).result == 7


async def test_a_wait_that_takes_too_long_says_for_what(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.claim(a_message())

        with pytest.raises(TimeoutError, match=r"the task with id 't-1' has not ended in 0\.2 s"):
            await client.wait("t-1", timeout=0.2)


async def test_a_wait_outlasts_the_loss_of_every_connection(database_url: str) -> None:
    client = Client(database_url=database_url, direct_url=database_url)
    async with opened(database_url) as inbox, client:
        claim = await inbox.claim(a_message())
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(client.wait("t-1", timeout=50))
            await until_awaited(inbox)
            assert await end_connections(inbox) >= 2

            await inbox.tasks.record(claim, Succeeded())

        assert (await wait).state is TaskState.SUCCEEDED


async def test_a_database_that_is_away_from_the_beginning_is_told() -> None:
    async with Client(database_url="postgresql://user@127.0.0.1:1/app") as client:
        with pytest.raises(StoreUnavailableError):
            await client.wait("t-1", timeout=50)


async def test_an_id_of_several_tasks_is_not_waited_for(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.postpone(a_message(queue="email"))
        await inbox.postpone(a_message(queue="reports"))

        with pytest.raises(AmbiguousTaskError):
            await client.wait("t-1", timeout=50)

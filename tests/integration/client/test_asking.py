"""What a program may ask about tasks, and change."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from broker_worker.client import AmbiguousTaskError, Client, NoSuchTaskError, TaskState
from broker_worker.errors import BrokerWorkerError, ConfigurationError, SchemaError
from tests.support.inbox import a_failure, a_message, opened


async def test_a_task_that_has_succeeded_shows_its_result(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.succeed(a_message(), '{"to": ["ada"]}')

        status = await client.status("t-1")

    assert status is not None
    assert (status.id, status.name, status.queue) == ("t-1", "email.send", "email")
    assert (status.state, status.attempt, status.max_attempts) == (TaskState.SUCCEEDED, 1, 3)
    assert (status.result, status.reason, status.error_type) == ({"to": ["ada"]}, None, None)
    assert (status.has_ended, status.has_succeeded, status.is_cancel_requested) == (True, True, False)
    assert status.started_at is not None
    assert status.finished_at is not None
    assert status.created_at <= status.started_at <= status.finished_at <= datetime.now(UTC)


async def test_a_result_of_text_is_text(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.succeed(a_message("t-1"), '"null"')
        await inbox.succeed(a_message("t-2"), None)

        text, nothing = await client.status("t-1"), await client.status("t-2")

    assert text is not None
    assert nothing is not None
    assert (text.result, nothing.result) == ("null", None)


async def test_a_dead_task_shows_why(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.die(a_message(), a_failure("no such customer"))

        status = await client.status("t-1")

    assert status is not None
    assert (status.state, status.reason, status.error_type, status.error_message) == (
        TaskState.DEAD,
        "gave_up",
        "ValueError",
        "no such customer",
    )


async def test_a_running_task_shows_its_progress(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.claim(a_message())
        await inbox.execute("UPDATE {schema}.tasks SET progress = 0.3, progress_note = '3 of 10'")

        status = await client.status("t-1")

    assert status is not None
    assert (status.progress, status.progress_note) == (0.3, "3 of 10")
    assert (status.state, status.has_ended, status.finished_at) == (TaskState.RUNNING, False, None)


async def test_a_task_that_is_not_known_has_no_status(database_url: str) -> None:
    async with Client(database_url=database_url) as client:
        assert await client.status("t-1") is None


async def test_an_id_of_several_tasks_needs_more_to_name_one(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.succeed(a_message(queue="email"))
        await inbox.postpone(a_message(queue="reports"))

        with pytest.raises(AmbiguousTaskError, match=r"queue email .* queue reports"):
            await client.status("t-1")
        status = await client.status("t-1", queue="reports", name="email.send")

    assert status is not None
    assert status.state is TaskState.RETRYING


async def test_a_waiting_task_is_cancelled_and_its_audit_names_who_did_it(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.postpone(a_message())

        is_cancelled = await client.cancel("t-1", actor="the shop")

        status = await client.status("t-1")
        [entry] = await inbox.fetch("SELECT actor FROM {schema}.audit")
    assert is_cancelled
    assert status is not None
    assert status.state is TaskState.CANCELLED
    assert entry["actor"] == "the shop"


async def test_a_running_task_s_worker_is_asked_to_stop_it(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.claim(a_message())

        answers = [await client.cancel("t-1") for _ in range(2)]

        status = await client.status("t-1")
    assert answers == [True, True]
    assert status is not None
    assert (status.state, status.is_cancel_requested) == (TaskState.RUNNING, True)


async def test_a_task_that_has_ended_is_not_cancelled(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.succeed(a_message())

        assert not await client.cancel("t-1")


async def test_a_task_that_is_not_known_can_not_be_cancelled(database_url: str) -> None:
    async with Client(database_url=database_url) as client:
        with pytest.raises(NoSuchTaskError):
            await client.cancel("t-1")


async def test_a_schema_that_is_not_there_is_said_to_be_so(database_url: str) -> None:
    async with Client(database_url=database_url, schema="elsewhere") as client:
        with pytest.raises(SchemaError, match="'elsewhere' is not there yet"):
            await client.status("t-1")


async def test_an_unusable_url_is_told(database_url: str) -> None:
    async with Client(database_url="mysql://nowhere") as client:
        with pytest.raises(ConfigurationError, match="the database URL must begin with"):
            await client.status("t-1")


async def test_what_postgres_refuses_is_one_line(database_url: str) -> None:
    async with opened(database_url) as inbox, Client(database_url=database_url) as client:
        await inbox.claim(a_message())
        await inbox.execute("ALTER TABLE {schema}.tasks DROP COLUMN progress")

        with pytest.raises(BrokerWorkerError, match=r"^Postgres refused it: 42703: "):
            await client.status("t-1")

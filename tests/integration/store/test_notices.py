"""What is notified, and a connection that hears it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from broker_worker.errors import ConfigurationError
from broker_worker.outcome import Dead, Outcome, Reason, Released, Succeeded
from broker_worker.store.interventions import cancel_task
from broker_worker.store.notices import Listener, notify
from broker_worker.store.queries import TaskLookup
from tests.support.inbox import Inbox, a_failure, a_message, opened
from tests.support.proxy import proxy_to

SECONDS = 20.0


@dataclass
class Ear:
    """Keeps what a listener hears."""

    notices: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    changes: asyncio.Queue[tuple[bool, str]] = field(default_factory=asyncio.Queue)

    async def next(self) -> str:
        async with asyncio.timeout(SECONDS):
            return await self.notices.get()

    async def change(self) -> tuple[bool, str]:
        async with asyncio.timeout(SECONDS):
            return await self.changes.get()


@asynccontextmanager
async def listening(database_url: str) -> AsyncIterator[Ear]:
    ear = Ear()
    listener = Listener(
        lambda: database_url,
        schema="broker_worker",
        on_notice=ear.notices.put_nowait,
        on_change=lambda is_up, detail: ear.changes.put_nowait((is_up, detail)),
        application="the listener",
    )
    async with asyncio.TaskGroup() as group:
        running = group.create_task(listener.run())
        yield ear
        running.cancel()


async def say(inbox: Inbox, *payloads: str) -> None:
    async with inbox.database.transaction() as connection:
        await notify(connection, inbox.database.schema, *payloads)


async def await_all(inbox: Inbox) -> None:
    await inbox.execute("UPDATE {schema}.tasks SET is_awaited = true")


async def test_a_listener_is_told_to_look_and_then_what_is_said(database_url: str) -> None:
    async with opened(database_url) as inbox, listening(database_url) as ear:
        assert await ear.next() == ""

        await say(inbox, "cancel:7", "ended:8")

        assert [await ear.next(), await ear.next()] == ["cancel:7", "ended:8"]
        assert await ear.change() == (True, "")


async def test_a_listener_whose_connection_is_ended_listens_again(database_url: str) -> None:
    async with opened(database_url) as inbox, listening(database_url) as ear:
        await ear.next()
        await inbox.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'the listener' AND datname = current_database()"
        )

        again = await ear.next()
        await say(inbox, "ended:8")

        assert (again, await ear.next()) == ("", "ended:8")
        assert [(await ear.change())[0] for _ in range(3)] == [True, False, True]


async def test_a_listener_finds_out_that_a_quiet_connection_is_dead(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_worker.store.notices.CHECK_INTERVAL", 0.1)
    monkeypatch.setattr("broker_worker.store.notices.CHECK_TIMEOUT", 0.2)
    parts = urlsplit(database_url)
    async with proxy_to(str(parts.hostname), parts.port or 5432) as proxy:
        netloc = f"{parts.username}:{parts.password or ''}@127.0.0.1:{proxy.port}"
        async with listening(parts._replace(netloc=netloc).geturl()) as ear:
            await ear.next()

            proxy.stall()

            assert await ear.change() == (True, "")
            assert (await ear.change())[0] is False
            proxy.resume()
            assert await ear.next() == ""


async def test_a_listener_without_a_usable_url_ends_with_what_is_wrong() -> None:
    listener = Listener(
        lambda: "mysql://nowhere", schema="broker_worker", on_notice=print, on_change=lambda *_: None
    )

    with pytest.raises(ConfigurationError, match="the database URL must begin with"):
        await listener.run()


@pytest.mark.parametrize(
    "outcome", [Succeeded("1"), Dead(Reason.GAVE_UP, a_failure())], ids=["succeeded", "dead"]
)
async def test_the_end_of_a_run_is_said_where_it_is_awaited(database_url: str, outcome: Outcome) -> None:
    async with opened(database_url) as inbox, listening(database_url) as ear:
        await ear.next()
        claim = await inbox.claim(a_message())
        await await_all(inbox)

        await inbox.tasks.record(claim, outcome)

        assert await ear.next() == f"ended:{claim.key}"


async def test_the_end_of_a_waiting_task_is_said_where_it_is_awaited(database_url: str) -> None:
    async with opened(database_url) as inbox, listening(database_url) as ear:
        await ear.next()
        claim = await inbox.postpone(a_message())
        await await_all(inbox)

        await cancel_task(inbox.database, TaskLookup("t-1"), actor="ada")

        assert await ear.next() == f"ended:{claim.key}"


async def test_nothing_is_said_of_what_nobody_waits_for_or_has_not_ended(database_url: str) -> None:
    async with opened(database_url) as inbox, listening(database_url) as ear:
        await ear.next()
        released = await inbox.claim(a_message("t-1"))
        await await_all(inbox)

        await inbox.tasks.record(released, Released())
        await inbox.succeed(a_message("t-2"))
        await inbox.die(a_message("t-3"))
        await say(inbox, "the end")

        assert await ear.next() == "the end"

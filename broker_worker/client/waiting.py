"""Where a task stands, and its end as soon as it comes: a notification, and a look behind it.

A waiter listens, then marks the row, then looks. So an end is either seen by the look, or
written after the mark and notified to a connection that listens already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from broker_worker.client.background import Background
from broker_worker.errors import StoreUnavailableError
from broker_worker.secret import Secret
from broker_worker.store.database import Database
from broker_worker.store.notices import ENDED, Listener
from broker_worker.store.queries import TaskLookup
from broker_worker.store.schema import check_schema
from broker_worker.store.status import Found, TaskStatus, find_task
from broker_worker.store.visit import explained

POOL_SIZE = 5  # connections of one client
APPLICATION = "broker_worker client"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a waiter looks, in seconds."""

    first: float = 0.05  # doubles with each look
    longest: float = 1.0
    behind: float = 2.0  # where a notification is expected

    def pauses(self) -> Iterator[float]:
        """Yield the pauses of one waiter."""
        pause = self.first
        while True:
            yield pause
            pause = min(2 * pause, self.longest)


class Tasks:
    """A database's tasks as a client sees them; connected at the first question."""

    def __init__(self, reveal_url: Callable[[], str], *, schema: str) -> None:
        self._database = Database.open(
            reveal_url, schema=schema, pool_size=POOL_SIZE, application=APPLICATION
        )
        self._opening = asyncio.Lock()
        self._is_checked = False

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Give the database once its schema is known to fit; whatever it refuses is one line.

        Raises:
            SchemaError: the schema does not fit, or this role lacks a right on it.
            StoreUnavailableError: Postgres can't be reached.
        """
        with explained():
            if not self._is_checked:
                await self._check()
            yield self._database

    async def find(self, lookup: TaskLookup, *, awaits: bool = False) -> Found | None:
        """Look where a task stands, as `find_task` does."""
        async with self.database() as database:
            return await find_task(database, lookup, awaits=awaits)

    async def close(self) -> None:
        """Close every connection."""
        await self._database.close()

    async def _check(self) -> None:
        async with self._opening:
            if not self._is_checked:
                await check_schema(self._database)
                self._is_checked = True


@dataclass(eq=False, slots=True)
class _Waiter:
    """Somebody who waits; `key` once the row is known."""

    bell: asyncio.Event = field(default_factory=asyncio.Event)
    key: int | None = None


class Waiting:
    """Waits for ends of tasks; all waiters share one connection that listens."""

    def __init__(self, tasks: Tasks, direct_url: Secret, *, schema: str, pace: Pace = Pace()) -> None:
        """Look at `tasks`; without a `direct_url` there is nothing to listen on, and only that."""
        self._tasks = tasks
        self._pace = pace
        self._waiters: set[_Waiter] = set()
        self._listener: Listener | None = None
        if direct_url.is_set:
            self._listener = Listener(
                direct_url.reveal,
                schema=schema,
                on_notice=self._heard,
                on_change=lambda *_: self._wake_all(),
                application=APPLICATION,
            )
            self._listening = Background(self._listener.run, on_end=self._wake_all)

    async def wait(self, lookup: TaskLookup) -> TaskStatus:
        """Return once the task has ended. Postgres may go away and come back meanwhile.

        Raises:
            AmbiguousTaskError: there are several.
            ConfigurationError: a URL can't be used.
            SchemaError: the schema does not fit, or this role lacks a right on it.
            StoreUnavailableError: Postgres can't be reached at the beginning.
        """
        waiter = _Waiter()
        self._waiters.add(waiter)
        try:
            return await self._wait(lookup, waiter)
        finally:
            self._waiters.remove(waiter)

    async def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            await self._listening.close()

    async def _wait(self, lookup: TaskLookup, waiter: _Waiter) -> TaskStatus:
        found: Found | None = None
        has_looked = False
        for pause in self._pace.pauses():
            waiter.bell.clear()
            is_listening = self._is_listening()
            try:
                found = await self._tasks.find(lookup, awaits=is_listening)
                has_looked = True
            except StoreUnavailableError:
                if not has_looked:
                    raise
            if found is not None and found.status.has_ended:
                return found.status
            if is_listening and found is not None and found.key != waiter.key:
                waiter.key = found.key
                continue  # its end may have been notified before its key was known here
            await _rings(waiter.bell, within=self._pace.behind if found and is_listening else pause)
        raise AssertionError("pauses never end")

    def _is_listening(self) -> bool:
        if self._listener is None:
            return False
        self._listening.need()
        return self._listener.is_up

    def _heard(self, notice: str) -> None:
        for waiter in self._waiters:
            if notice in {"", f"{ENDED}{waiter.key}"}:
                waiter.bell.set()

    def _wake_all(self) -> None:
        self._heard("")


async def _rings(bell: asyncio.Event, *, within: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await bell.wait()

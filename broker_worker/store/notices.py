"""LISTEN and NOTIFY: who waits for something in the database hears of it at once.

A notification saves time and carries no duty: it can be lost with a connection, and a
transaction pooler has none. Whoever listens therefore also looks, less often.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from asyncpg.exceptions import InterfaceError as DriverInterfaceError
from asyncpg.exceptions import PostgresError as DriverError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.errors import ConfigurationError, StoreUnavailableError
from broker_worker.store.database import FAULTS, connector, first_line, quoted

CHECK_INTERVAL = 10.0  # seconds between two looks whether a quiet connection still lives
CHECK_TIMEOUT = 5.0  # seconds
CLOSE_TIMEOUT = 2.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between tries to connect
ENDED = "ended:"  # before a task's key: it has ended


async def notify(connection: AsyncConnection, schema: str, *payloads: str) -> None:
    """Send `payloads` to all who listen on the schema, with the commit of the caller's transaction."""
    await connection.execute(
        text("SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS n(payload)"),
        {"channel": schema.strip('"'), "payloads": list(payloads)},
    )


async def notify_ended(connection: AsyncConnection, schema: str, keys: Sequence[int]) -> None:
    """Say of tasks that somebody waits for that they have ended; no statement where there are none."""
    if keys:
        await notify(connection, schema, *(f"{ENDED}{key}" for key in keys))


class Listener:
    """One connection that hears what is notified on a schema's channel, for as long as `run` runs."""

    def __init__(
        self,
        reveal_url: Callable[[], str],
        *,
        schema: str,
        on_notice: Callable[[str], None],
        on_change: Callable[[bool, str], None],
        application: str = "broker_worker",
    ) -> None:
        """Prepare; `reveal_url` leads past any transaction pooler and is asked at every connect.

        `on_notice` gets each payload, and "" after every connect: look yourself, something may
        have been missed. `on_change` gets whether it listens now, and why not.
        """
        quoted(schema)
        self._channel = schema
        self._connect = connector(reveal_url, application)
        self._on_notice = on_notice
        self._on_change = on_change
        self._is_up: bool | None = None

    @property
    def is_up(self) -> bool:
        """Whether it listens now, as far as is known."""
        return self._is_up is True

    async def run(self) -> None:
        """Listen, and again on another connection whenever one is lost, until cancelled.

        Raises:
            ConfigurationError: the URL can't be used.
        """
        pauses = _pauses()
        while True:
            try:
                await self._listen()
            except (StoreUnavailableError, *FAULTS) as error:
                if self.is_up:
                    pauses = _pauses()
                self._changed(is_up=False, detail=f"{type(error).__name__}: {first_line(error)}")
            except ConfigurationError as error:
                if self._is_up is None:  # from the beginning; later its file may be half-written
                    raise
                self._changed(is_up=False, detail=str(error))
            await asyncio.sleep(next(pauses))

    async def _listen(self) -> None:
        connection = await self._connect()
        try:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(self._channel, self._heard)
            self._changed(is_up=True, detail="")
            self._on_notice("")
            while not await _happens(lost, within=CHECK_INTERVAL):
                await connection.fetchval("SELECT 1", timeout=CHECK_TIMEOUT)
            raise StoreUnavailableError("the connection was lost")
        finally:
            await _close(connection)

    def _heard(self, *notification: object) -> None:
        self._on_notice(str(notification[-1]))

    def _changed(self, *, is_up: bool, detail: str) -> None:
        if is_up is not self._is_up:
            self._is_up = is_up
            self._on_change(is_up, detail)


def _pauses() -> Iterator[float]:
    """Grow from the first to the longest pause, each with a share that is drawn."""
    longest = FIRST_PAUSE
    while True:
        yield longest * random.uniform(0.5, 1)  # noqa: S311 - so that not all come back at once
        longest = min(2 * longest, LONGEST_PAUSE)


async def _happens(event: asyncio.Event, *, within: float) -> bool:
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _close(connection: Any) -> None:  # noqa: ANN401 - the driver has no types
    """Say goodbye, or drop the connection where that takes long or fails."""
    with contextlib.suppress(DriverError, DriverInterfaceError, OSError):
        await connection.close(timeout=CLOSE_TIMEOUT)

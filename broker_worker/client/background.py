"""Work that goes on between the calls of a client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from broker_worker.cancellation import cancel
from broker_worker.errors import BrokerWorkerError


class Background:
    """A task of the event loop, started when it is first needed and ended by `close`."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], on_end: Callable[[], None]) -> None:
        """Prepare; `on_end` is called when `work` ends, for those who wait for something of it."""
        self._work = work
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def need(self) -> None:
        """Start it, or raise what it ended with."""
        if self._is_closed:
            raise BrokerWorkerError("the client is closed")
        if self._task is None:
            # no TaskGroup: its body would be whatever the caller does between two calls
            self._task = asyncio.get_running_loop().create_task(self._work())
            self._task.add_done_callback(lambda _: self._on_end())
        elif self._task.done():
            self._task.result()

    async def close(self) -> None:
        """End it, whatever it ended with."""
        self._is_closed = True
        if self._task is not None:
            await cancel([self._task])

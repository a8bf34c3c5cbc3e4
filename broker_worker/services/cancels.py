"""Asks runs to end whose tasks an operator has cancelled.

The row is the authority: it is looked at each second. A notification saves that second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Protocol

from broker_worker.ports import CANCEL_NOTICE

INTERVAL = timedelta(seconds=1)


class Requests(Protocol):
    """Where the rows are."""

    async def requested(self, claims: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Find those of `claims`, by key and epoch, that run here and are asked to end.

        Raises:
            StoreUnavailableError: it can't be seen now.
        """


class Cancels:
    """Two turns for `every`: `run_once` each second, and `run_noticed`, which waits by itself."""

    def __init__(
        self,
        requests: Requests,
        *,
        running: Callable[[], Collection[tuple[int, int]]],
        stop: Callable[[tuple[int, int]], None],
    ) -> None:
        """Prepare; `stop` is called at each look: it is for it to know which runs were asked before."""
        self._requests = requests
        self._running = running
        self._stop = stop
        self._is_noticed = asyncio.Event()

    async def run_once(self) -> None:
        """Look at the rows of what runs here, and ask those runs to end that are to.

        Raises:
            StoreUnavailableError: it can't be seen now.
        """
        for claim in await self._requests.requested(self._running()):
            self._stop(claim)

    async def run_noticed(self) -> None:
        """Wait until a notice may be about a run of this process, and look then.

        Raises:
            StoreUnavailableError: it can't be seen now; the turns of `run_once` go on.
        """
        await self._is_noticed.wait()
        self._is_noticed.clear()
        await self.run_once()

    def notice(self, payload: str) -> None:
        """Hear a notification: `cancel:<key>`, or "", with which a new connection says "look yourself"."""
        if not payload or payload in {f"{CANCEL_NOTICE}{key}" for key, _ in self._running()}:
            self._is_noticed.set()

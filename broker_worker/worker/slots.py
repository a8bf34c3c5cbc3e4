"""How many handlers of a queue run at once, and the lane in which crashers run alone."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Slots:
    """The concurrency of one queue.

    The prefetch is as large, so a slot is free for every delivery, unless runs go on
    whose channel was lost: then new deliveries wait here.
    """

    def __init__(self, limit: int) -> None:
        """Allow `limit` handlers at once."""
        self._free = asyncio.Semaphore(limit)

    def slot(self) -> Slot:
        """Enter with `async with`: it is held at once if one is free, and given back at the end."""
        return Slot(self._free)


class Slot:
    """One delivery's place among those that run."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._lane: asyncio.Lock | None = None
        self.is_held = False

    @property
    def is_alone(self) -> bool:
        """Whether this delivery holds the crashers' lane."""
        return self._lane is not None

    async def __aenter__(self) -> Self:
        if not self._free.locked():
            await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lane is not None:
            self._lane.release()
        if self.is_held:
            self._free.release()

    async def acquire(self) -> None:
        """Wait for a free slot."""
        await self._free.acquire()
        self.is_held = True

    async def acquire_lane(self, lane: asyncio.Lock) -> None:
        """Take the lane if it is free now."""
        if not lane.locked():
            await lane.acquire()
            self._lane = lane

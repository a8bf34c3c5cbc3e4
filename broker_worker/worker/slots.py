"""How many handlers of a queue run at once, and the lane in which crashers run alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Slots:
    """The concurrency of one queue.

    The prefetch is as large, so a slot is free for every delivery, unless runs go on
    whose channel was lost, or that could not be ended: then new deliveries wait here.
    """

    def __init__(self, limit: int, *, on_lost: Callable[[], None] = lambda: None) -> None:
        """Allow `limit` handlers at once; `on_lost` is called when half of the slots are written off."""
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._too_many = (limit + 1) // 2  # half of them, rounded up
        self._on_lost = on_lost
        self.lost = 0

    def slot(self) -> Slot:
        """Enter with `with`: it is held at once if one is free, and given back at the end."""
        return Slot(self)

    def take_free(self) -> bool:
        """Hold one slot more, if one is free."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def take(self) -> None:
        """Hold one slot more, as soon as one is free; who waits longest is the first."""
        if self.take_free():
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it had come just before
                self.give_back()
            raise

    def give_back(self) -> None:
        """Let another run have the slot."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def lose(self, run: asyncio.Task[Any]) -> None:
        """Count a slot as lost until `run` ends after all."""
        self.lost += 1
        run.add_done_callback(self._regain)
        if self.lost >= self._too_many:
            self._on_lost()

    def _regain(self, _: object) -> None:
        self.lost -= 1
        self.give_back()


class Slot:
    """One delivery's place among those that run."""

    __slots__ = ("_lane", "_slots", "is_held")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._lane: asyncio.Lock | None = None
        self.is_held = False

    @property
    def is_alone(self) -> bool:
        """Whether this delivery holds the crashers' lane."""
        return self._lane is not None

    def __enter__(self) -> Self:
        self.is_held = self._slots.take_free()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lane is not None:
            self._lane.release()
        if self.is_held:
            self._slots.give_back()

    async def acquire(self) -> None:
        """Wait for a free slot."""
        await self._slots.take()
        self.is_held = True

    async def acquire_lane(self, lane: asyncio.Lock) -> None:
        """Take the lane if it is free now."""
        if not lane.locked():
            await lane.acquire()
            self._lane = lane

    def write_off(self, run: asyncio.Task[Any]) -> None:
        """Leave the slot to a run that can't be ended; it is free again when that run is over."""
        self.is_held = False
        self._slots.lose(run)

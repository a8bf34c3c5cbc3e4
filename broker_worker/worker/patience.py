"""Waiting for a server that cannot do its part at the moment."""

from __future__ import annotations

from collections.abc import Callable

from broker_worker.ports import Clock

FIRST_PAUSE = 0.1  # seconds
LONGEST_PAUSE = 5.0  # seconds; a server that is back is noticed within it


class Patience:
    """Pauses that double from a tenth of a second to five, each drawn between half and whole."""

    def __init__(self, clock: Clock, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._ceiling = FIRST_PAUSE

    async def pause(self) -> None:
        """Sleep before the next try."""
        await self._clock.sleep(self._ceiling * (0.5 + self._random() / 2))
        self._ceiling = min(self._ceiling * 2, LONGEST_PAUSE)

"""What says the same again and again is said once a minute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

INTERVAL = 60.0  # seconds
MOST_KEYS = 1000  # remembered; a thousand different faults at once are worth a thousand lines


class Throttle:
    """Lets a few lines a minute through for each key, and counts the others."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._told: dict[Hashable, deque[float]] = {}
        self._held_back: dict[Hashable, int] = {}

    def admit(self, key: Hashable, *, most: int = 1) -> int | None:
        """Say how many were held back since the last line, or nothing: then this one is held back too."""
        now = self._monotonic()
        told = self._told.pop(key, None) or deque()
        while told and now - told[0] >= INTERVAL:
            told.popleft()
        self._told[key] = told  # the latest comes last
        if len(told) >= most:
            self._held_back[key] = self._held_back.get(key, 0) + 1
            return None
        told.append(now)
        if len(self._told) > MOST_KEYS:
            forgotten = next(iter(self._told))
            del self._told[forgotten]
            self._held_back.pop(forgotten, None)
        return self._held_back.pop(key, 0)

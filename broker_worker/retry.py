"""When a failed task is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff: `delay` doubles up to `max_delay`, drawn between half and whole."""

    max_attempts: int
    delay: timedelta
    max_delay: timedelta

    def allows(self, attempt: int) -> bool:
        """Say whether another attempt may follow `attempt` (1 is the first)."""
        return attempt < self.max_attempts

    def backoff(self, attempt: int, *, jitter: float) -> timedelta:
        """The wait after `attempt`; `jitter` is drawn by the caller from [0, 1).

        Equal arguments give equal answers; over the draws the mean is three
        quarters of the ceiling.
        """
        doublings = min(attempt - 1, 40)  # more would overflow a timedelta long after passing any cap
        ceiling = min(self.max_delay, self.delay * (1 << doublings))
        return ceiling * (0.5 + jitter / 2)

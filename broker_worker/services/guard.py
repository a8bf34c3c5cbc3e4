"""Asks for a fresh process where consuming can't be restored although both servers answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from broker_worker.errors import UnavailableError
from broker_worker.ports import Clock

INTERVAL = timedelta(seconds=15)
PATIENCE = timedelta(minutes=5)  # with a working broker and a working database all the while


class Guard:
    """The last resort: whatever we repair is repaired long before.

    A queue that this process never consumed, while it consumes others, asks for nothing: a fresh
    process would not consume it either, and the others would suffer.
    """

    def __init__(
        self,
        *,
        consuming: Callable[[], Mapping[str, bool]],
        reach_afresh: Callable[[], Awaitable[None]],
        has_unrecorded: Callable[[], bool],
        give_up: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """Ask `reach_afresh` for new connections to both servers, `has_unrecorded` for outcomes in memory."""
        self._consuming = consuming
        self._reach_afresh = reach_afresh
        self._has_unrecorded = has_unrecorded
        self._give_up = give_up
        self._clock = clock
        self._lost_since: dict[str, float] = {}
        self._was_consumed: set[str] = set()

    async def run_once(self) -> None:
        """Look once."""
        states = self._consuming()
        self._was_consumed |= {queue for queue, is_up in states.items() if is_up}
        lost = {queue for queue, is_up in states.items() if not is_up}
        if not lost:
            self._lost_since = {}
            return
        try:
            await self._reach_afresh()
        except UnavailableError:
            self._lost_since = {}  # there is nothing to be consumed from, or nowhere to write
            return
        now = self._clock.monotonic()
        self._lost_since = {queue: self._lost_since.get(queue, now) for queue in sorted(lost)}
        hopeless = [
            queue
            for queue, since in self._lost_since.items()
            if now - since >= PATIENCE.total_seconds()
            and (queue in self._was_consumed or not any(states.values()))
        ]
        if hopeless and not self._has_unrecorded():
            minutes = PATIENCE // timedelta(minutes=1)
            self._give_up(
                f"{', '.join(hopeless)} could not be consumed for {minutes} minutes, "
                "though broker and database answer"
            )

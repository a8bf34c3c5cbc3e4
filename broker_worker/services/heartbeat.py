"""Beats, and notices whose beat stands still: death is a row, not a clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from uuid import UUID

from broker_worker.errors import DeclaredDeadError, StoreUnavailableError
from broker_worker.events import ConnectionChanged, Emit, ServiceWorked
from broker_worker.ports import Beat, Clock, Rescues, Workers

INTERVAL = timedelta(seconds=3)
DEAD_AFTER = timedelta(seconds=15)  # of an unchanged beat, seen with a working database all the while
REPORT_INTERVAL = timedelta(minutes=1)  # between two lines about a database that is still away
ANSWER_WITHIN = timedelta(seconds=4)  # else on a fresh connection: the old one may be half open
LONGEST_GAP = timedelta(seconds=8)  # between two looks; a longer one proves nothing about the others


class Heartbeat:
    """One turn beats, looks at the others, and releases what this process has forgotten it runs."""

    def __init__(
        self,
        workers: Workers,
        rescues: Rescues,
        *,
        clock: Clock,
        emit: Emit,
        idle: Callable[[], Mapping[str, float]],
        running: Callable[[], Collection[int]],
        on_death: Callable[[str], None],
    ) -> None:
        """Ask `idle` for seconds of free prefetch by queue, `running` for the keys of tasks run here."""
        self._workers = workers
        self._rescues = rescues
        self._clock = clock
        self._emit = emit
        self._idle = idle
        self._running = running
        self._on_death = on_death
        self._seen: dict[UUID, tuple[int, float]] = {}
        self._looked_at: float | None = None
        self._is_up: bool | None = None
        self._reported_at = 0.0

    async def run_once(self) -> None:
        """Beat once."""
        try:
            beats = await self._workers.beat(self._idle())
        except DeclaredDeadError as error:
            return self._on_death(str(error))
        except StoreUnavailableError as error:
            return self._report(is_up=False, detail=str(error))
        self._report(is_up=True)
        for still in self._stand_still(beats, self._clock.monotonic()):
            if await self._workers.declare_dead(still):
                self._emit(ServiceWorked("heartbeat", "declared_dead", 1))
        released = await self._rescues.release_forgotten(self._running())
        if released:
            self._emit(ServiceWorked("heartbeat", "released_forgotten", released))
        return None

    def _report(self, *, is_up: bool, detail: str = "") -> None:
        """Say that the database came or went, and once a minute that it is still away."""
        now = self._clock.monotonic()
        is_old_news = is_up == self._is_up and (
            is_up or now - self._reported_at < REPORT_INTERVAL.total_seconds()
        )
        if not is_old_news:
            self._is_up, self._reported_at = is_up, now
            self._emit(ConnectionChanged("database", is_up, detail))

    def _stand_still(self, beats: Collection[Beat], now: float) -> list[Beat]:
        """Find the workers whose beat is the same for long enough, by our own clock."""
        if self._looked_at is None or now - self._looked_at > LONGEST_GAP.total_seconds():
            self._seen = {}  # the database was away, or we were: the others could not beat either
        self._looked_at = now
        seen = {}
        for beat in beats:
            before = self._seen.get(beat.worker)
            is_same = before is not None and before[0] == beat.beat
            seen[beat.worker] = before if is_same and before is not None else (beat.beat, now)
        self._seen = seen
        limit = DEAD_AFTER.total_seconds()
        return [beat for beat in beats if now - seen[beat.worker][1] >= limit]

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from broker_worker.errors import DeclaredDeadError, StoreUnavailableError
from broker_worker.events import ConnectionChanged, Event, ServiceWorked
from broker_worker.ports import Beat
from broker_worker.services.heartbeat import ANSWER_WITHIN, DEAD_AFTER, INTERVAL, Heartbeat

ME, OTHER, THIRD = UUID(int=1), UUID(int=2), UUID(int=3)


class HandClock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Beats:
    """The rows of workers, and what was asked of them."""

    def __init__(self) -> None:
        self.beat_by_worker = {ME: 0, OTHER: 0}
        self.declared: list[Beat] = []
        self.idle: list[Mapping[str, float]] = []
        self.is_away = False
        self.is_declared_dead = False
        self.beats_in_time = False  # the other beats between our look and our declaration

    async def beat(self, idle: Mapping[str, float]) -> list[Beat]:
        if self.is_away:
            raise StoreUnavailableError("away")
        if self.is_declared_dead:
            raise DeclaredDeadError("dead")
        self.idle.append(idle)
        self.beat_by_worker[ME] += 1
        return [Beat(worker, beat) for worker, beat in self.beat_by_worker.items()]

    async def declare_dead(self, beat: Beat) -> bool:
        self.declared.append(beat)
        if self.beats_in_time:
            return False
        del self.beat_by_worker[beat.worker]
        return True


class Forgotten:
    def __init__(self) -> None:
        self.known: list[Collection[int]] = []

    async def rescue(self) -> int:
        return 0

    async def reemit_overdue(self) -> int:
        return 0

    async def bury_lost(self) -> int:
        return 0

    async def release_forgotten(self, known: Collection[int]) -> int:
        self.known.append(known)
        return 2


class Scene:
    """One heartbeat, its workers, and a clock."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.workers = Beats()
        self.rescues = Forgotten()
        self.events: list[Event] = []
        self.deaths: list[str] = []
        self.heartbeat = Heartbeat(
            self.workers,
            self.rescues,
            clock=self.clock,
            emit=self.events.append,
            idle=lambda: {"email": 7.0},
            running=lambda: [4, 5],
            on_death=self.deaths.append,
        )

    async def beats(self, seconds: float, *, every: float = 3.0, alive: Collection[UUID] = ()) -> None:
        """Let time pass, with a turn every few seconds, in which those who are alive beat as well."""
        end = self.clock.seconds + seconds
        while self.clock.seconds < end:
            for worker in alive:
                self.workers.beat_by_worker[worker] += 1
            await self.heartbeat.run_once()
            self.clock.seconds += every


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_worker_whose_beat_stands_still_for_fifteen_seconds_is_declared_dead(scene: Scene) -> None:
    await scene.beats(15)
    before = list(scene.workers.declared)

    await scene.heartbeat.run_once()

    assert before == []
    assert scene.workers.declared == [Beat(OTHER, 0)]
    assert ServiceWorked("heartbeat", "declared_dead", 1) in scene.events


async def test_a_worker_that_beats_is_never_declared_dead(scene: Scene) -> None:
    await scene.beats(3600, alive=[OTHER])

    assert scene.workers.declared == []


async def test_a_worker_that_beats_only_every_fourteen_seconds_is_never_declared_dead(scene: Scene) -> None:
    for _ in range(50):
        await scene.beats(14, every=2)
        scene.workers.beat_by_worker[OTHER] += 1

    assert scene.workers.declared == []


async def test_this_worker_never_declares_itself_dead(scene: Scene) -> None:
    await scene.beats(60)

    assert ME not in {beat.worker for beat in scene.workers.declared}


async def test_an_outage_of_the_database_proves_nothing_about_the_others(scene: Scene) -> None:
    await scene.beats(12)
    scene.workers.is_away = True
    await scene.beats(15)
    scene.workers.is_away = False

    await scene.beats(15)

    assert scene.workers.declared == []
    await scene.heartbeat.run_once()
    assert scene.workers.declared == [Beat(OTHER, 0)]


async def test_a_pause_of_this_process_proves_nothing_about_the_others(scene: Scene) -> None:
    await scene.beats(3)
    scene.clock.seconds += 3600

    await scene.beats(15)

    assert scene.workers.declared == []


async def test_one_look_that_fails_does_not_begin_anew(scene: Scene) -> None:
    await scene.beats(6)
    scene.workers.is_away = True
    await scene.beats(3)
    scene.workers.is_away = False

    await scene.beats(9)

    assert scene.workers.declared == [Beat(OTHER, 0)]


async def test_a_worker_that_beat_just_in_time_is_not_counted_as_dead(scene: Scene) -> None:
    scene.workers.beats_in_time = True

    await scene.beats(18)

    assert scene.workers.declared
    assert ServiceWorked("heartbeat", "declared_dead", 1) not in scene.events


async def test_a_newcomer_has_its_own_fifteen_seconds(scene: Scene) -> None:
    await scene.beats(12)
    scene.workers.beat_by_worker[THIRD] = 0

    await scene.beats(15)

    assert [beat.worker for beat in scene.workers.declared] == [OTHER]


async def test_a_worker_found_dead_is_told_and_does_nothing_else(scene: Scene) -> None:
    scene.workers.is_declared_dead = True

    await scene.heartbeat.run_once()

    assert scene.deaths == ["dead"]
    assert (scene.rescues.known, scene.events) == ([], [])


async def test_each_turn_tells_idle_consumers_and_releases_what_memory_does_not_know(scene: Scene) -> None:
    await scene.heartbeat.run_once()

    assert scene.workers.idle == [{"email": 7.0}]
    assert scene.rescues.known == [[4, 5]]
    assert scene.events == [
        ConnectionChanged("database", is_up=True),
        ServiceWorked("heartbeat", "released_forgotten", 2),
    ]


async def test_an_outage_is_said_once_a_minute_and_its_end_once(scene: Scene) -> None:
    await scene.beats(6)
    scene.workers.is_away = True
    await scene.beats(66)
    scene.workers.is_away = False
    await scene.beats(6)

    changes = [event.is_up for event in scene.events if isinstance(event, ConnectionChanged)]
    assert changes == [True, False, False, True]


def test_after_a_beat_that_nobody_answers_there_is_time_for_another_on_a_fresh_connection() -> None:
    unanswered = INTERVAL + ANSWER_WITHIN

    assert unanswered + INTERVAL + ANSWER_WITHIN < DEAD_AFTER

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from broker_worker.events import Event, ServiceWorked
from broker_worker.services.pruner import PAUSE, STATEMENTS, Pruner, Retention
from broker_worker.store.pruning import Pruned

WEEK = timedelta(days=7)


class FakeClock:
    """Sleeps are written down, and take their time at once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class FakePruning:
    """Has so many full windows of succeeded tasks, and one row of everything else; takes a second each."""

    def __init__(self, windows: int = 0, *, clock: FakeClock | None = None) -> None:
        self.windows = windows
        self.calls: list[str] = []
        self.clock = clock or FakeClock()

    async def prune_succeeded(self, **_: timedelta) -> Pruned:
        self.calls.append("succeeded")
        self.clock.seconds += 1
        if self.windows == 0:
            return Pruned(0, is_more=False)
        self.windows -= 1
        return Pruned(1000, is_more=self.windows > 0)

    async def prune_others(self, **_: timedelta) -> Pruned:
        self.calls.append("others")
        return Pruned(0, is_more=False)

    async def prune_payloads(self) -> Pruned:
        self.calls.append("payloads")
        return Pruned(1, is_more=False)

    async def prune_checkpoints(self) -> Pruned:
        self.calls.append("checkpoints")
        return Pruned(2, is_more=False)

    async def prune_letters(self, **_: timedelta) -> Pruned:
        self.calls.append("letters")
        return Pruned(1, is_more=False)

    async def prune_workers(self) -> Pruned:
        self.calls.append("workers")
        return Pruned(0, is_more=False)


def a_retention(
    *, succeeded: timedelta | None = WEEK, letters: timedelta | None = WEEK, keeps_payloads: bool = False
) -> Retention:
    return Retention(succeeded, WEEK, letters, keeps_payloads=keeps_payloads)


async def prune(pruning: FakePruning, retention: Retention) -> list[Event]:
    events: list[Event] = []
    await Pruner(pruning, retention, clock=pruning.clock, emit=events.append).run_once()
    return events


async def test_a_turn_goes_on_while_there_is_more_and_tells_how_much_it_deleted() -> None:
    events = await prune(FakePruning(windows=3), a_retention())

    assert events == [
        ServiceWorked("pruner", "pruned_tasks", 3000),
        ServiceWorked("pruner", "pruned_payloads", 1),
        ServiceWorked("pruner", "pruned_checkpoints", 2),
        ServiceWorked("pruner", "pruned_dead_letters", 1),
    ]


async def test_a_turn_has_an_end_whatever_there_is_to_delete() -> None:
    pruning = FakePruning(windows=10 * STATEMENTS)

    await prune(pruning, a_retention())

    assert pruning.calls.count("succeeded") == STATEMENTS


async def test_a_statement_that_leaves_more_to_do_is_followed_by_a_rest_as_long_as_it_was_slow() -> None:
    pruning = FakePruning(windows=3)

    await prune(pruning, a_retention())

    assert pruning.clock.slept == [PAUSE, PAUSE]


async def test_what_is_kept_for_ever_is_not_looked_at() -> None:
    pruning = FakePruning()

    await prune(pruning, a_retention(succeeded=None, letters=None, keeps_payloads=True))

    assert pruning.calls == ["others", "checkpoints", "workers"]

from __future__ import annotations

from datetime import timedelta

from broker_worker.events import Event, ServiceWorked
from broker_worker.services.pruner import STATEMENTS, Pruner, Retention
from broker_worker.store.pruning import Pruned

WEEK = timedelta(days=7)


class FakePruning:
    """Has so many full windows of tasks, and one row of everything else."""

    def __init__(self, windows: int = 0) -> None:
        self.windows = windows
        self.calls: list[str] = []

    async def prune_tasks(self, **_: timedelta | None) -> Pruned:
        self.calls.append("tasks")
        if self.windows == 0:
            return Pruned(0, is_more=False)
        self.windows -= 1
        return Pruned(1000, is_more=self.windows > 0)

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


def a_retention(*, letters: timedelta | None = WEEK, keeps_payloads: bool = False) -> Retention:
    return Retention(WEEK, WEEK, letters, keeps_payloads=keeps_payloads)


async def test_a_turn_goes_on_while_there_is_more_and_tells_how_much_it_deleted() -> None:
    events: list[Event] = []

    await Pruner(FakePruning(windows=3), a_retention(), emit=events.append).run_once()

    assert events == [
        ServiceWorked("pruner", "pruned_tasks", 3000),
        ServiceWorked("pruner", "pruned_payloads", 1),
        ServiceWorked("pruner", "pruned_checkpoints", 2),
        ServiceWorked("pruner", "pruned_dead_letters", 1),
    ]


async def test_a_turn_has_an_end_whatever_there_is_to_delete() -> None:
    pruning = FakePruning(windows=10 * STATEMENTS)

    await Pruner(pruning, a_retention(), emit=lambda _: None).run_once()

    assert pruning.calls.count("tasks") == STATEMENTS


async def test_what_is_kept_for_ever_is_not_looked_at() -> None:
    pruning = FakePruning()

    await Pruner(pruning, a_retention(letters=None, keeps_payloads=True), emit=lambda _: None).run_once()

    assert pruning.calls == ["tasks", "checkpoints", "workers"]

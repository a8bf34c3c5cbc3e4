"""How long a page takes by each filter of `tasks list` and `dead list`, and by some of them together."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median

from benchmarks.report import Figure
from broker_worker.store.database import Database
from broker_worker.store.dead_letters import Desk, Selection
from broker_worker.store.listing import TaskFilter, list_tasks
from broker_worker.task import TaskState

GOAL = 1.0  # second
LETTERS = (
    Selection(),
    Selection(reason="gave_up"),
    Selection(reason="timeout"),
    Selection(reason="none"),
    Selection(queue="email"),
    Selection(queue="rare"),
    Selection(name="task.2"),
    Selection(name="seldom"),
    Selection(group="000000000000"),
    Selection(reason="timeout", queue="email"),
    Selection(reason="gave_up", queue="reports", name="task.2"),
    Selection(reason="gave_up", queue="reports", group="000000000000"),
)


async def measure_lists(url: str) -> list[Figure]:
    """Ask for each page once, in the history that `benchmarks.history` writes; the slowest counts."""
    database = Database.open(lambda: url, schema="broker_worker", pool_size=1)
    desk = Desk(database)
    try:
        tasks = {
            described(where): await seconds(partial(list_tasks, database, where))
            for where in task_filters(datetime.now(UTC))
        }
        open_letters = {
            described(where): await seconds(partial(desk.list_letters, where)) for where in LETTERS
        }
        letters = {
            f"all {described(where)}".strip(): await seconds(
                partial(desk.list_letters, where, with_resolved=True)
            )
            for where in LETTERS
        }
    finally:
        await database.close()
    return [slowest("growth_tasks_list", tasks), slowest("growth_dead_list", open_letters | letters)]


def task_filters(now: datetime) -> Iterable[TaskFilter]:
    """Yield every filter, for what is frequent and for what is rare."""
    yield TaskFilter()
    yield TaskFilter(message_id="none")
    yield TaskFilter(since=now - timedelta(hours=1))
    yield TaskFilter(until=now - timedelta(days=9))
    yield TaskFilter(queue="email", name="task.2")
    yield TaskFilter("cancelled", "reports", "task.4")
    span = TaskFilter(since=now - timedelta(days=5), until=now - timedelta(days=4))
    yield span
    yield replace(span, state="dead", queue="email", name="task.2")
    for queue in ("bench", "email", "retired", "rare", "none"):
        yield TaskFilter(queue=queue)
        yield replace(span, queue=queue)
    for name in ("bench", "task.4", "seldom", "none"):
        yield TaskFilter(name=name)
        yield replace(span, name=name)
    for state in TaskState:
        yield TaskFilter(state)
        yield TaskFilter(state, queue="rare")
        yield TaskFilter(state, name="seldom")
        yield replace(span, state=state)


async def seconds(ask: Callable[[], Awaitable[object]]) -> float:
    """Return how long an answer takes."""
    began = time.monotonic()
    await ask()
    return time.monotonic() - began


def described(where: TaskFilter | Selection) -> str:
    """Name a filter as the command line does."""
    given = {name: value for name, value in asdict(where).items() if value is not None}
    return " ".join(
        name if isinstance(value, datetime) else f"{name} {value}" for name, value in given.items()
    )


def slowest(name: str, taken: Mapping[str, float]) -> Figure:
    """Make the figure of some lists: the slowest, and the median for comparison."""
    worst = max(taken, key=lambda each: taken[each])
    note = (
        f"the slowest of {len(taken)} filters ({worst or 'none'}); the median: {median(taken.values()):.3f} s"
    )
    return Figure(name, taken[worst], "s", goal=GOAL, is_upper_bound=True, note=note)

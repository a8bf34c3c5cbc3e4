"""The failure path: tasks that fail once and succeed on the retry, all at once.

How fast: each task fails, waits a second, which is the shortest rung of the ladder of delays, and succeeds.
The clock runs from the first claim to the last success and nothing is taken off it, not even the waiting: as
most of it is hidden behind the other tasks, it weighs the more the fewer there are. The rate is tasks per
second, though each of them is two runs, two deliveries, a publish and a row of `attempts`; beside it is the
rate of the same daemon with a handler that succeeds at once, on the same clock.

How exact: delays are drawn over several rungs, the shortest longer than it takes to fail all tasks: a retry
waits behind whatever is in its queue already, and that is no fault of the ladder. Which rung a copy was given
is read from the broker: a queue of ours is bound to every exchange of the ladder, and its messages say where
each went. So a retry is early or late against what was applied to it, and not against what was drawn. Both
moments are of Postgres' clock: the beginning of the transaction that records the failure, before which
nothing was published, and the beginning of the one that claims the retry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import fmean, median, quantiles
from tempfile import TemporaryDirectory

import aiormq
import aiormq.abc
import asyncpg

from benchmarks.contestants import CONCURRENCY
from benchmarks.daemon import QUEUE, DaemonError, daemon, last_words, prepare
from benchmarks.flood import Flood, flood
from benchmarks.report import Figure
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers, Place
from broker_worker.amqp.topology import Topology

RATIO_GOAL = 0.25  # of the rate of tasks that succeed at once
LATE_GOAL = 1.0  # seconds, the 99th percentile
MEAN_GOAL = 0.02  # how far the mean of the delays may be from the policy's, as a part of it
TASKS = "bw.tasks"
TOPOLOGY = Topology("bw", (QUEUE,))
SHORTEST = TOPOLOGY.rungs[0]
SPREAD = 0.75  # the part of a delay that is drawn: from a quarter of the longest on
SECONDS_WITHOUT_PROGRESS = 60.0
SECONDS_BETWEEN_LOOKS = 0.1
SUCCEEDED = "SELECT count(*) FROM broker_worker.tasks WHERE state = 'succeeded'"
SPAN = """
SELECT extract(epoch FROM max(t.finished_at) - min(coalesce(a.started_at, t.started_at)))::float8
FROM broker_worker.tasks t LEFT JOIN broker_worker.attempts a ON a.task_key = t.key
"""
UNEXPECTED = """
SELECT count(*) FROM broker_worker.tasks t
WHERE t.attempt <> $1 OR (SELECT count(*) FROM broker_worker.attempts a WHERE a.task_key = t.key) <> $1 - 1
"""
WAITED = """
SELECT t.message_id, extract(epoch FROM t.started_at - a.ended_at)::float8 AS seconds
FROM broker_worker.tasks t JOIN broker_worker.attempts a ON a.task_key = t.key
"""


@dataclass(frozen=True, slots=True)
class Policy:
    """The retries that the daemon is set to: delays are drawn between `shortest` and `longest`."""

    longest: timedelta
    spread: float = 0.0

    @property
    def shortest(self) -> timedelta:
        return self.longest * (1 - self.spread)

    @property
    def mean(self) -> float:
        """Seconds."""
        return (self.shortest + self.longest).total_seconds() / 2

    @property
    def settings(self) -> Mapping[str, str]:
        return {
            "HANDLERS": "benchmarks.runners.failing_handlers",
            "QUEUES": f"{QUEUE}:{CONCURRENCY}",
            "RETRY_DELAY": f"{self.longest.total_seconds():g}s",
            "RETRY_JITTER": str(self.spread),
        }


@dataclass(frozen=True, slots=True)
class Retry:
    """What became of one retry, in seconds."""

    applied: float  # how long its rung was to hold it
    waited: float  # from its failure to its claim

    @property
    def late(self) -> float:
        """How much more it waited; below 0 it came early."""
        return self.waited - self.applied


async def measure(servers: BenchServers, scale: Scale) -> list[Figure]:
    """Measure how fast the path is, and then how exact."""
    tasks = scale.pick(full=10_000, quick=1_000, smoke=100)
    at_once = Policy(SHORTEST)
    failing, succeeding = [], []
    for _ in range(scale.pick(full=3, quick=1, smoke=1)):
        succeeding.append(tasks / await seconds_for(servers, "bench", tasks, at_once, attempts=1))
        failing.append(tasks / await seconds_for(servers, "fails_once", tasks, at_once, attempts=2))
    spread = Policy(timedelta(seconds=scale.pick(full=24, quick=4, smoke=4)), SPREAD)
    retries = await retried(servers, tasks, spread)
    return figures(median(failing), median(succeeding), retries, spread)


def figures(failing: float, succeeding: float, retries: Sequence[Retry], policy: Policy) -> list[Figure]:
    """Make of rates per second and of retries what is printed."""
    late = sorted(retry.late for retry in retries)
    mean = fmean(retry.applied for retry in retries)
    rungs = len({retry.applied for retry in retries})
    where = f"{len(retries)} retries at once over {rungs} rungs"
    return [
        Figure(
            "failures", failing, "messages/s", note="tasks that fail once; nothing is taken off for the delay"
        ),
        Figure(
            "failures_ratio",
            failing / succeeding,
            "ratio",
            goal=RATIO_GOAL,
            note=f"to tasks that succeed at once: {succeeding:,.0f} messages/s",
        ),
        Figure(
            "failures_early",
            sum(each < 0 for each in late),
            "messages",
            goal=0,
            is_upper_bound=True,
            note=f"{where}; the earliest {1000 * late[0]:.0f} ms after its time",
        ),
        Figure(
            "failures_late_p99",
            quantiles(late, n=100, method="inclusive")[98],
            "s",
            goal=LATE_GOAL,
            is_upper_bound=True,
            note=f"{where}; p50 {median(late):.2f} s, the last {late[-1]:.2f} s",
        ),
        Figure(
            "failures_mean_delay",
            abs(mean / policy.mean - 1),
            "ratio",
            goal=MEAN_GOAL,
            is_upper_bound=True,
            note=f"how far the delays' mean, {mean:.2f} s, is from the policy's, {policy.mean:g} s",
        ),
    ]


async def seconds_for(
    servers: BenchServers, task: str, tasks: int, policy: Policy, *, attempts: int
) -> float:
    """Return how long a daemon takes for tasks that take so many attempts each."""
    async with finished(servers, task, tasks, policy) as database:
        if unexpected := await database.fetchval(UNEXPECTED, attempts):
            raise DaemonError(f"{unexpected} of {tasks} tasks did not take {attempts} attempts")
        seconds: float = await database.fetchval(SPAN)
        return seconds


async def retried(servers: BenchServers, tasks: int, policy: Policy) -> list[Retry]:
    """Let all tasks fail once, and return what became of each retry."""
    ladder = Ladder(policy)
    async with finished(servers, "fails_once", tasks, policy, watched_by=ladder) as database:
        waited: dict[str, float] = {row["message_id"]: row["seconds"] for row in await database.fetch(WAITED)}
        applied = await ladder.applied(tasks)
    if waited.keys() != applied.keys():
        raise DaemonError(f"{len(waited)} tasks were tried again, and {len(applied)} went over the ladder")
    return [Retry(applied[task], seconds) for task, seconds in waited.items()]


@dataclass(slots=True)
class Ladder:
    """Sees which task was put on which rung."""

    policy: Policy
    _channel: aiormq.abc.AbstractChannel | None = None
    _queue: str = ""
    _applied: dict[str, float] = field(default_factory=dict)
    _seen: int = 0

    async def watch(self, connection: aiormq.abc.AbstractConnection) -> None:
        """Get a copy of whatever is put on a rung from now on."""
        self._channel = await connection.channel(publisher_confirms=False)
        declared = await self._channel.queue_declare(exclusive=True)
        self._queue = declared.queue or ""
        for rung in TOPOLOGY.rungs:
            await self._channel.queue_bind(self._queue, TOPOLOGY.delay(rung))

    async def applied(self, tasks: int) -> dict[str, float]:
        """Return the seconds of each task's rung, once all are there.

        Raises:
            DaemonError: a task was put on two.
        """
        assert self._channel is not None  # noqa: S101 - `watch` comes first
        await self._channel.basic_consume(self._queue, self._take, no_ack=True)

        async def seen() -> int:
            return self._seen

        await _until(tasks, seen, "copies")
        if self._seen != tasks:
            raise DaemonError(f"{tasks} copies were to be put on the ladder, and there were {self._seen}")
        return self._applied

    async def _take(self, message: aiormq.abc.DeliveredMessage) -> None:
        seconds = {TOPOLOGY.delay(rung): rung.total_seconds() for rung in TOPOLOGY.rungs}
        headers = message.header.properties.headers or {}
        self._seen += 1
        self._applied[str(headers["bw-task-id"])] = seconds[message.exchange or ""]


@asynccontextmanager
async def finished(
    servers: BenchServers, task: str, tasks: int, policy: Policy, *, watched_by: Ladder | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """Have a daemon of this policy do tasks that wait for it already; the block begins when all succeeded."""
    with TemporaryDirectory(prefix="broker-worker-bench-") as name:
        async with servers.place() as place:
            await prepare(place)
            await flood(place.amqp_url, Flood(exchange=TASKS, routing_key=QUEUE, count=tasks, task=task))
            async with _connected(place) as (broker, database):
                if watched_by is not None:
                    await watched_by.watch(broker)
                log = Path(name) / "daemon.log"
                async with daemon(place, log, policy.settings):

                    async def succeeded() -> int:
                        count: int = await database.fetchval(SUCCEEDED)
                        return count

                    try:
                        await _until(tasks, succeeded, "tasks")
                    except DaemonError as error:
                        raise DaemonError(f"{error}: {last_words(log)}") from error
                yield database


@asynccontextmanager
async def _connected(
    place: Place,
) -> AsyncIterator[tuple[aiormq.abc.AbstractConnection, asyncpg.Connection]]:
    broker = await aiormq.connect(place.amqp_url)
    try:
        database = await asyncpg.connect(place.database_url)
        try:
            yield broker, database
        finally:
            await database.close()
    finally:
        await broker.close()


async def _until(wanted: int, count: Callable[[], Awaitable[int]], what: str) -> None:
    """Look until `count` gives as many as are wanted; it may stand still for a minute."""
    seen, changed = -1, time.monotonic()
    while (there := await count()) < wanted:
        if there != seen:
            seen, changed = there, time.monotonic()
        if time.monotonic() - changed > SECONDS_WITHOUT_PROGRESS:
            raise DaemonError(f"{wanted} {what} were to come, and it stays at {seen}")
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

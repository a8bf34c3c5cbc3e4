"""What ten million finished tasks cost: throughput beside an empty table, bytes, lists.

The same daemon does the same work in an empty table, in the full one, and there while it is pruned, in
interleaved rounds, each after a checkpoint, so that each pays for its first touch of a page. Begin and end
are the database's own: `started_at` of the first attempt, `finished_at` of the last. Ids come in the order of
time (as UUIDv7 does), or at random (as UUIDv4 does): then almost each new task touches another page of the
index of identities.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg

from benchmarks.daemon import WORK_QUEUE, DaemonError, daemon, prepare
from benchmarks.history import write_history
from benchmarks.lists import measure_lists
from benchmarks.prefill import prefill
from benchmarks.report import Figure
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers, Place
from broker_worker.clock import SystemClock
from broker_worker.services.pruner import Pruner, Retention
from broker_worker.store.database import Database
from broker_worker.store.pruning import PruningStore

GOAL = 0.9  # of the throughput in an empty table
WEEK = timedelta(days=7)
SETTINGS = {"QUEUES": "bench:200", "RETENTION_SUCCEEDED": "kept", "RETENTION_OTHER": "kept"}
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_WITHOUT_END = 120.0
NEWEST = "SELECT coalesce(max(key), 0) FROM broker_worker.tasks"
FINISHED = "SELECT count(*) FROM broker_worker.tasks WHERE key > $1 AND state = 'succeeded'"
SECONDS = """
SELECT extract(epoch FROM max(finished_at) - min(started_at))::float FROM broker_worker.tasks WHERE key > $1
"""
LOG_POSITION = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float"
COUNTERS = """
SELECT n_tup_upd AS updated, n_tup_hot_upd AS heap_only, n_tup_del AS deleted FROM pg_stat_user_tables
WHERE schemaname = 'broker_worker' AND relname = 'tasks'
"""
SIZES = """
SELECT pg_relation_size('broker_worker.tasks')::float AS heap,
  pg_indexes_size('broker_worker.tasks')::float AS indexes
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run: where, and with which ids."""

    is_full: bool
    has_random_ids: bool = False
    is_pruned: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to; sizes are of the whole table, divided by the messages of this run."""

    rate: float  # messages/s
    log_bytes: float  # of the write-ahead log, for each task
    heap_bytes: float
    index_bytes: float
    heap_only: float  # share of the updates
    deleted: float  # rows/s


EMPTY, FULL, PRUNED = Case(is_full=False), Case(is_full=True), Case(is_full=True, is_pruned=True)
EMPTY_RANDOM = Case(is_full=False, has_random_ids=True)
FULL_RANDOM = Case(is_full=True, has_random_ids=True)
CASES = (EMPTY, FULL, PRUNED, EMPTY_RANDOM, FULL_RANDOM)


async def measure(servers: BenchServers, scale: Scale) -> list[Figure]:
    """Fill one place, and run in that and in an empty one."""
    # a few in a hundred thousand are not finished
    tasks = scale.pick(full=10_002_000, quick=100_000, smoke=20_000)
    rounds = scale.pick(full=3, quick=1, smoke=1)
    outcomes: dict[Case, list[Outcome]] = {case: [] for case in CASES}
    with TemporaryDirectory(prefix="broker-worker-bench-") as folder:
        async with servers.place() as empty, servers.place() as full:
            await asyncio.gather(prepare(empty), prepare(full))
            await write_history(full.database_url, tasks)
            for number in range(rounds):
                for case in CASES if number % 2 == 0 else reversed(CASES):
                    place = full if case.is_full else empty
                    outcomes[case].append(await run(case, place, scale.messages, Path(folder)))
            lists = await measure_lists(full.database_url)
    return [*figures(outcomes, tasks), *lists]


async def run(case: Case, place: Place, messages: int, folder: Path) -> Outcome:
    """Have a daemon do `messages` once.

    Raises:
        DaemonError: it did not, within two minutes.
    """
    connection = await asyncpg.connect(place.database_url)
    try:
        if not case.is_full:
            await connection.execute("TRUNCATE broker_worker.tasks RESTART IDENTITY CASCADE")
        await prefill(
            place.amqp_url,
            queue=WORK_QUEUE,
            messages=messages,
            make_id=random_id if case.has_random_ids else ids_in_order(),
        )
        await connection.execute("CHECKPOINT")
        newest: int = await connection.fetchval(NEWEST)
        before = await connection.fetchrow(COUNTERS)
        log = await connection.fetchval(LOG_POSITION)
        async with pruning(place, is_on=case.is_pruned), daemon(place, folder / "daemon.log", SETTINGS):
            await _until_finished(connection, newest, messages)
            log = await connection.fetchval(LOG_POSITION) - log
        seconds: float = await connection.fetchval(SECONDS, newest)
        after = await connection.fetchrow(COUNTERS)
        sizes = await connection.fetchrow(SIZES)
    finally:
        await connection.close()
    changed = {name: after[name] - before[name] for name in ("updated", "heap_only", "deleted")}
    return Outcome(
        rate=messages / seconds,
        log_bytes=log / messages,
        heap_bytes=sizes["heap"] / messages,
        index_bytes=sizes["indexes"] / messages,
        heap_only=changed["heap_only"] / max(changed["updated"], 1),
        deleted=changed["deleted"] / seconds,
    )


def ids_in_order() -> Callable[[int], str]:
    """Return what makes ids that begin with the time, as long as a UUID."""
    now = time.time_ns() // 1_000_000
    return lambda number: f"{now:012x}{number:020x}"


def random_id(_: int) -> str:
    """Make an id as most publishers do."""
    return uuid4().hex


async def _until_finished(connection: asyncpg.Connection, newest: int, messages: int) -> None:
    deadline = time.monotonic() + SECONDS_WITHOUT_END
    while (done := await connection.fetchval(FINISHED, newest)) < messages:
        if time.monotonic() > deadline:
            raise DaemonError(f"{done} of {messages} tasks are finished after two minutes")
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


@asynccontextmanager
async def pruning(place: Place, *, is_on: bool) -> AsyncIterator[None]:
    """Prune without end, as another worker of the fleet would: three tenths of the history are over."""
    if not is_on:
        yield
        return
    database = Database.open(lambda: place.database_url, schema="broker_worker", pool_size=1)
    retention = Retention(succeeded=WEEK, other=None, dead_letters=None, keeps_payloads=True)
    pruner = Pruner(PruningStore(database), retention, clock=SystemClock(), emit=lambda _: None)

    async def prune() -> None:
        while True:
            await pruner.run_once()

    async with asyncio.TaskGroup() as group:
        pruned = group.create_task(prune())
        yield
        pruned.cancel()
    await database.close()


def figures(outcomes: Mapping[Case, Sequence[Outcome]], tasks: int) -> list[Figure]:
    """Make of the runs what is printed."""

    def of(case: Case, value: Callable[[Outcome], float]) -> float:
        return median(value(outcome) for outcome in outcomes[case])

    def ratio(name: str, case: Case, to: Case, note: str) -> Figure:
        # of each round, since what disturbs one run often disturbs its neighbour
        ratios = (mine.rate / other.rate for mine, other in zip(outcomes[case], outcomes[to], strict=True))
        return Figure(name, median(ratios), "ratio", goal=GOAL, note=note)

    deleted = of(PRUNED, lambda outcome: outcome.deleted)
    beside = f"throughput with {tasks:,} tasks in the table, to that in an empty one"
    return [
        ratio("growth", FULL, EMPTY, beside),
        ratio("growth_pruned", PRUNED, EMPTY, f"the same while {deleted:,.0f} rows a second are pruned"),
        ratio("growth_random_ids", FULL_RANDOM, EMPTY_RANDOM, "the same with ids at random"),
        *(
            Figure(name, of(case, lambda outcome: outcome.log_bytes), "bytes", note=f"WAL a task, {note}")
            for name, case, note in (
                ("growth_wal", FULL, "ids in the order of time"),
                ("growth_wal_random_ids", FULL_RANDOM, "ids at random, just after a checkpoint"),
            )
        ),
        Figure("growth_heap", of(EMPTY, lambda outcome: outcome.heap_bytes), "bytes", note="table, a task"),
        *(
            Figure(
                name, of(case, lambda outcome: outcome.index_bytes), "bytes", note=f"indexes, a task, {note}"
            )
            for name, case, note in (
                ("growth_indexes", EMPTY, "ids in the order of time"),
                ("growth_indexes_random_ids", EMPTY_RANDOM, "ids at random"),
            )
        ),
        Figure(
            "growth_heap_only",
            100 * of(FULL, lambda outcome: outcome.heap_only),
            "%",
            note="successes that touched no index",
        ),
    ]

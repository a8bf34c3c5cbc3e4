"""What tasks that wait cost a daemon: nothing, whether they wait in the delay queues or in the work queue.

Three daemons with default settings start together and do the same tasks, since a daemon that has worked is
some MiB larger than one that never has, whatever waits. Then one has nothing to do, one has tasks in its
delay queues, one has messages in its work queue. They are compared at the same age.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import aiormq
import asyncpg

from benchmarks.daemon import QUEUE, WORK_QUEUE, Daemon, DaemonError, daemon, prepare
from benchmarks.flood import ID, Flood, flood
from benchmarks.prefill import depth
from benchmarks.report import Figure
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers, Place
from broker_worker.amqp.topology import Topology

GOAL = 5.0  # MiB
SECONDS_TO_WAIT = 300.0
SECONDS_BETWEEN_LOOKS = 0.1
SETTINGS = {"SHUTDOWN_GRACE": "0s"}  # what never ends is not waited for
TASKS = "bw.tasks"
LONGEST_DELAY = "bw.delay.4096000"
SUCCEEDED = "SELECT count(*) FROM broker_worker.tasks WHERE state = 'succeeded'"
STATE = """
SELECT count(*) FILTER (WHERE state = 'retrying') AS waiting,
  (SELECT count(*) FROM broker_worker.outbox) AS owed FROM broker_worker.tasks
"""
COLUMNS = """
SELECT string_agg(column_name, ', ') FROM information_schema.columns
WHERE table_schema = 'broker_worker' AND table_name = $1
  AND is_generated = 'NEVER' AND column_name NOT IN ('key', 'message_id', 'task_key')
"""
# One more row of a table for each new task: like the one of the task that waits and has the highest number.
COPY_TASKS = """
INSERT INTO broker_worker.tasks (message_id, {columns})
SELECT lpad((message_id::bigint + n)::text, length(message_id), '0'), {columns}
FROM (
  SELECT * FROM broker_worker.tasks WHERE state = 'retrying' ORDER BY message_id DESC LIMIT 1
) model, generate_series(1, $1) n
"""
COPY_ROWS = """
INSERT INTO broker_worker.{table} (task_key, {columns})
SELECT t.key, {prefixed} FROM broker_worker.tasks t, (SELECT * FROM broker_worker.{table} LIMIT 1) model
WHERE t.state = 'retrying' AND NOT EXISTS (SELECT 1 FROM broker_worker.{table} WHERE task_key = t.key)
"""


async def measure(servers: BenchServers, scale: Scale) -> list[Figure]:
    """Let tasks wait and compare."""
    done = scale.pick(full=5_000, quick=500, smoke=50)
    failing = scale.pick(full=10_000, quick=500, smoke=50)
    delayed = scale.pick(full=100_000, quick=10_000, smoke=200)
    queued = scale.pick(full=1_000_000, quick=50_000, smoke=1_000)
    with TemporaryDirectory(prefix="broker-worker-bench-") as name:
        async with AsyncExitStack() as running:
            places = [await running.enter_async_context(servers.place()) for _ in range(3)]
            await asyncio.gather(*(prepare(place) for place in places))
            empty, with_delayed, with_queued = [
                await running.enter_async_context(
                    daemon(place, Path(name) / f"daemon-{number}.log", SETTINGS)
                )
                for number, place in enumerate(places)
            ]
            await asyncio.gather(*(work(place, done) for place in places))
            await put_off(places[1], failing, delayed)
            await queue_up(places[2], queued)
            base = empty.resident_mebibytes()
            return [
                _figure("memory_delayed", with_delayed, base, f"{delayed} tasks in the delay queues"),
                _figure("memory_queued", with_queued, base, f"{queued} messages in the work queue"),
            ]


def _figure(name: str, measured: Daemon, base: float, what: str) -> Figure:
    growth = measured.resident_mebibytes() - base
    note = f"{what}: {growth:.1f} MiB more than the {base:.1f} MiB of one for which nothing waits"
    return Figure(name, growth, "MiB", goal=GOAL, is_upper_bound=True, note=note)


async def work(place: Place, tasks: int) -> None:
    """Have the daemon do some tasks, so that it has what any task needs."""
    await flood(place.amqp_url, Flood(exchange=TASKS, routing_key=QUEUE, count=tasks))
    connection = await asyncpg.connect(place.database_url)
    try:
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while (succeeded := await connection.fetchval(SUCCEEDED)) < tasks:
            if time.monotonic() > deadline:
                raise DaemonError(f"{tasks} tasks were to succeed, and {succeeded} did")
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        await connection.close()


async def put_off(place: Place, failing: int, delayed: int) -> None:
    """Have the daemon fail some tasks, and put all the others where these are then.

    A daemon takes minutes to fail a hundred thousand. What it keeps for each would show at a tenth of them.
    """
    flooding = Flood(exchange=TASKS, routing_key=QUEUE, count=failing, task="again_later")
    await flood(place.amqp_url, flooding)
    connection = await asyncpg.connect(place.database_url)
    try:
        await _until_waiting(connection, failing)
        others = delayed - failing
        await connection.execute(
            COPY_TASKS.format(columns=await connection.fetchval(COLUMNS, "tasks")), others
        )
        for table in ("payloads", "attempts"):
            columns: str = await connection.fetchval(COLUMNS, table)
            prefixed = ", ".join(f"model.{column}" for column in columns.split(", "))
            await connection.execute(COPY_ROWS.format(table=table, columns=columns, prefixed=prefixed))
        headers: dict[str, str | int] = {"bw-task-id": ID, "bw-epoch": 1, "bw-attempt": 1}
        await flood(
            place.amqp_url,
            Flood(
                exchange=LONGEST_DELAY,
                routing_key=QUEUE,
                count=others,
                first=failing,
                task="again_later",
                headers=headers,
            ),
        )
        await _until_waiting(connection, delayed)
    finally:
        await connection.close()
    await _check(
        place, [Topology("bw", (QUEUE,)).delay(rung) for rung in Topology("bw", (QUEUE,)).rungs], delayed
    )


async def queue_up(place: Place, queued: int) -> None:
    """Fill the work queue; the first tasks that the daemon takes never end, and so it takes no more."""
    await flood(place.amqp_url, Flood(exchange=TASKS, routing_key=QUEUE, count=queued, task="never_ends"))
    await _check(place, [WORK_QUEUE], queued - 16)


async def _until_waiting(connection: asyncpg.Connection, tasks: int) -> None:
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while True:
        state = await connection.fetchrow(STATE)
        if (state["waiting"], state["owed"]) == (tasks, 0):
            return
        if time.monotonic() > deadline:
            raise DaemonError(
                f"{tasks} tasks were to wait in the delay queues, and it stays at {dict(state)}"
            )
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


async def _check(place: Place, queues: list[str], wanted: int) -> None:
    connection = await aiormq.connect(place.amqp_url)
    try:
        there = sum([await depth(connection, queue) for queue in queues])
    finally:
        await connection.close()
    if there != wanted:
        raise DaemonError(f"{wanted} messages were to wait, and there are {there}")

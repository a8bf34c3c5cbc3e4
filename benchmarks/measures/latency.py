"""Latency at 200 messages a second: from publish until the outcome is committed.

Beside it the least that such work can take: a bare aio-pika loop that commits one row for each message. Both
run all the time, and get messages in turns of two seconds, so that whatever else the machine does hits both.
The load is open: a message is published when its time has come, whatever became of those before.

When is an outcome committed? `finished_at` is when its transaction began, and a commit timestamp is taken
before the flush. Here a trigger notifies, which Postgres delivers after flush and commit; the stamp is taken
when this process hears of it. So broker_worker pays for trigger, notification and the way here; the bare loop
stamps the end of its commit itself and pays for none of it.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import aio_pika
import aiormq
import asyncpg

from benchmarks.daemon import QUEUE, ROOT, DaemonError, consumers, daemon, last_words, prepare
from benchmarks.payload import FIRST, TASK, body
from benchmarks.report import Figure
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers, Place
from broker_worker.local.process import KeptProcess, Program

P50_GOAL, P99_GOAL = 3.0, 5.0  # times what the bare loop takes
RATE = 200  # messages per second
BARE_QUEUE = "bare"
STAMP = struct.Struct("qd")  # as in runners/commit_loop.py
SECONDS_TO_END = 60.0
SECONDS_BETWEEN_LOOKS = 0.02
TELL = (
    """
    CREATE FUNCTION bench_tell() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('bench', NEW.message_id); RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER bench_tell AFTER INSERT OR UPDATE ON broker_worker.tasks FOR EACH ROW
    WHEN (NEW.state = 'succeeded') EXECUTE FUNCTION bench_tell()
    """,
)

Moments = Mapping[int, float]  # by the message's number, seconds of the monotonic clock


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the two: how it gets a message, and when it has committed which."""

    publish: Callable[[int], asyncio.Future[object]]
    committed: Callable[[], Moments]

    async def latencies(self, numbers: Sequence[int]) -> list[float]:
        """Publish messages evenly and return how many seconds each took."""
        sent = await publish_evenly(numbers, self.publish)
        deadline = time.monotonic() + SECONDS_TO_END
        while missing := sent.keys() - (committed := self.committed()).keys():
            if time.monotonic() > deadline:
                raise DaemonError(f"{len(missing)} of {len(numbers)} messages were not done in a minute")
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        return [committed[number] - sent[number] for number in numbers]


async def measure(servers: BenchServers, scale: Scale) -> list[Figure]:
    """Let both work in turns; a first turn of each warms up and is not counted."""
    turns = scale.pick(full=10, quick=1, smoke=1)
    seconds = scale.pick(full=2.0, quick=2.0, smoke=0.25)
    taken: dict[Subject, list[float]] = {}
    fresh = count(1)
    with TemporaryDirectory(prefix="broker-worker-bench-") as folder:
        async with servers.place() as place, ours(place, Path(folder)) as a, bare(place, Path(folder)) as b:
            for turn in range(turns + 1):
                for subject in (a, b):
                    numbers = [next(fresh) for _ in range(int(RATE * seconds))]
                    latencies = await subject.latencies(numbers)
                    if turn:
                        taken.setdefault(subject, []).extend(latencies)
    return figures(taken[a], taken[b])


def figures(ours_taken: Sequence[float], bare_taken: Sequence[float]) -> list[Figure]:
    """Make of the seconds that each message took what is printed."""
    (p50, p99), (bare_p50, bare_p99) = (percentiles(taken) for taken in (ours_taken, bare_taken))
    return [
        Figure(
            "latency_p50",
            p50 * 1000,
            "ms",
            note=f"at {RATE} messages/s; the bare loop: {bare_p50 * 1000:.1f} ms",
        ),
        Figure(
            "latency_p99",
            p99 * 1000,
            "ms",
            note=f"at {RATE} messages/s; the bare loop: {bare_p99 * 1000:.1f} ms",
        ),
        _ratio("latency_p50_ratio", p50 / bare_p50, P50_GOAL),
        _ratio("latency_p99_ratio", p99 / bare_p99, P99_GOAL),
    ]


def _ratio(name: str, value: float, goal: float) -> Figure:
    note = "times what a bare aio-pika round trip and one bare commit take"
    return Figure(name, value, "ratio", goal=goal, is_upper_bound=True, note=note)


def percentiles(taken: Sequence[float]) -> tuple[float, float]:
    """Return the 50th and the 99th."""
    cuts = quantiles(taken, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def publish_evenly(
    numbers: Sequence[int], publish: Callable[[int], asyncio.Future[object]]
) -> dict[int, float]:
    """Begin to publish each at its time; return when each began, once all are confirmed."""
    start = time.monotonic()
    sent: dict[int, float] = {}
    confirms = []
    for position, number in enumerate(numbers):
        await asyncio.sleep(start + position / RATE - time.monotonic())
        sent[number] = time.monotonic()
        confirms.append(publish(number))
    await asyncio.gather(*confirms)
    return sent


@asynccontextmanager
async def ours(place: Place, folder: Path) -> AsyncIterator[Subject]:
    """Run a daemon with default settings, and listen for what it commits."""
    await prepare(place)
    committed: dict[int, float] = {}
    listener = await asyncpg.connect(place.database_url)
    for statement in TELL:
        await listener.execute(statement)
    await listener.add_listener("bench", lambda *told: committed.setdefault(int(told[-1]), time.monotonic()))
    try:
        async with daemon(place, folder / "daemon.log"), publishing(place, "bw.tasks", QUEUE) as publish:
            yield Subject(publish, lambda: committed)
    finally:
        await listener.close()


@asynccontextmanager
async def bare(place: Place, folder: Path) -> AsyncIterator[Subject]:
    """Run the bare loop; what it committed when, it writes into a file."""
    stamps, log = folder / "stamps", folder / "bare.log"
    given = {
        **os.environ,
        "BENCH_AMQP_URL": place.amqp_url,
        "BENCH_DATABASE_URL": place.database_url,
        "BENCH_QUEUE": BARE_QUEUE,
        "BENCH_TALLY": str(stamps),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "benchmarks.runners.commit_loop"]
    program = KeptProcess(Program(command=command, environment=given, folder=None, log=log))
    try:
        await _until_consuming(program, place, log)
        async with publishing(place, "", BARE_QUEUE) as publish:
            yield Subject(publish, lambda: _read(stamps))
    finally:
        await asyncio.to_thread(program.end)


def _read(stamps: Path) -> dict[int, float]:
    """Return what the bare loop wrote, by the message's number."""
    return {n - FIRST: moment for n, moment in STAMP.iter_unpack(stamps.read_bytes())}


async def _until_consuming(program: KeptProcess, place: Place, log: Path) -> None:
    connection = await aiormq.connect(place.amqp_url)
    try:
        while not await _is_consumed(connection):
            if not program.is_running():
                raise DaemonError(f"the bare loop ended: {last_words(log)}")
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        await connection.close()


async def _is_consumed(connection: aiormq.abc.AbstractConnection) -> bool:
    try:
        return await consumers(connection, BARE_QUEUE) > 0
    except aiormq.ChannelNotFoundEntity:
        return False


@asynccontextmanager
async def publishing(
    place: Place, exchange_name: str, routing_key: str
) -> AsyncIterator[Callable[[int], asyncio.Future[object]]]:
    """Publish as any program does: aio-pika, persistent, confirmed."""
    async with await aio_pika.connect(place.amqp_url) as connection:
        channel = await connection.channel()
        exchange = (
            await channel.get_exchange(exchange_name, ensure=False)
            if exchange_name
            else channel.default_exchange
        )

        def publish(number: int) -> asyncio.Future[object]:
            message = aio_pika.Message(
                body(number),
                type=TASK,
                message_id=str(number),
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            return asyncio.ensure_future(exchange.publish(message, routing_key))

        yield publish

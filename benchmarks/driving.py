"""One run of one contestant: fill, start, wait for the last call or row, stop, and see that all was done."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import aiormq
import asyncpg

from benchmarks import processor_time, tally
from benchmarks.contestant import Contestant
from benchmarks.environment import peers_python
from benchmarks.prefill import depth, prefill
from benchmarks.servers import BenchServers, Place
from broker_worker.local.process import KeptProcess, Program

ROOT = Path(__file__).parents[1]
SECONDS_BETWEEN_LOOKS = 0.005
SECONDS_BETWEEN_COUNTS = 0.002
SECONDS_WITHOUT_PROGRESS = 60.0
SECONDS_TO_FILL = 300.0
SECONDS_TO_STOP = 30.0
LAST_CHARACTERS = 3_000


class RunError(Exception):
    """A contestant did not do its work, or not only its work."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run came to."""

    messages: int
    seconds: float  # from the first call of a handler to the end
    processor_seconds: float  # of all its processes, in that time

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


async def run_once(contestant: Contestant, servers: BenchServers, messages: int) -> Run:
    """Have one contestant do `messages`.

    Raises:
        RunError: it ended early, made no progress for a minute, or did another number than it was given.
    """
    with TemporaryDirectory(prefix="broker-worker-bench-") as name:
        folder = Path(name)
        async with servers.place() as place:
            given = environment(contestant, place, messages, folder)
            await fill(contestant, given, folder)
            async with watching(contestant, place) as finished:
                return await work(_Work(contestant, given, folder, messages, finished))


def environment(contestant: Contestant, place: Place, messages: int, folder: Path) -> dict[str, str]:
    """Return what its programs are told. Settings of broker_worker around us do not concern them."""
    base = {
        name: value for name, value in os.environ.items() if not name.startswith(("BROKER_WORKER_", "BENCH_"))
    }
    return {
        **base,
        "BENCH_AMQP_URL": place.amqp_url,
        "BENCH_DATABASE_URL": place.database_url,
        "BENCH_QUEUE": contestant.queue or "bench",
        "BENCH_MESSAGES": str(messages),
        "BENCH_TALLY": str(folder / "tally"),
        "PYTHONPATH": str(ROOT),
        **contestant.variables,
    }


async def fill(contestant: Contestant, given: Mapping[str, str], folder: Path) -> None:
    """Put the tasks where they are taken from."""
    if not contestant.fills:
        await prefill(
            given["BENCH_AMQP_URL"], queue=given["BENCH_QUEUE"], messages=int(given["BENCH_MESSAGES"])
        )
        return
    log = folder / "fill.log"
    filling = start(contestant, "fill", given, log)
    code = await asyncio.to_thread(filling.wait, SECONDS_TO_FILL)
    if code:
        raise RunError(f"{contestant.name}: fill ended with {code}: {last_words(log)}")


def start(contestant: Contestant, verb: str, given: Mapping[str, str], log: Path) -> KeptProcess:
    """Start its program; it ends when we end, whatever happens."""
    python = sys.executable if contestant.python == "ours" else str(peers_python())
    return KeptProcess(
        Program(
            command=[python, "-m", f"benchmarks.runners.{contestant.runner}", verb],
            environment=given,
            folder=None,
            log=log,
        )
    )


@dataclass(slots=True)
class Finished:
    """Counts the rows of what is finished, where there are such rows."""

    connection: asyncpg.Connection | None
    query: str

    async def count(self) -> int:
        """Return how many there are now."""
        found: int = await self.connection.fetchval(self.query) if self.connection is not None else 0
        return found


@asynccontextmanager
async def watching(contestant: Contestant, place: Place) -> AsyncIterator[Finished]:
    """Open what counts its rows before the clock runs."""
    if contestant.finished is None:
        yield Finished(None, "")
        return
    connection = await asyncpg.connect(place.database_url)
    try:
        yield Finished(connection, contestant.finished)
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True)
class _Work:
    contestant: Contestant
    given: Mapping[str, str]
    folder: Path
    messages: int
    finished: Finished

    @property
    def log(self) -> Path:
        return self.folder / "work.log"

    async def counted(self) -> int:
        return tally.counted(self.folder / "tally")


async def work(order: _Work) -> Run:
    """Start it, time it, stop it, and look whether all was done once."""
    program = start(order.contestant, "work", order.given, order.log)
    try:
        await until(1, order.counted, order, program)
        before = processor_time.below(program.pid)
        await until(order.messages, order.counted, order, program)
        if order.contestant.finished is not None:
            await until(order.messages, order.finished.count, order, program)
        ended = time.monotonic()
        used = processor_time.below(program.pid) - before
    finally:
        await asyncio.to_thread(program.stop, SECONDS_TO_STOP)
        await asyncio.to_thread(program.end)
    stamps = tally.stamps(order.folder / "tally")
    await verify(order, len(stamps))
    if order.contestant.finished is None:
        ended = max(stamps)
    return Run(order.messages, ended - min(stamps), used)


async def until(wanted: int, count: Callable[[], Awaitable[int]], order: _Work, program: KeptProcess) -> None:
    """Look until `count` gives as many as are wanted.

    Raises:
        RunError: the program ended, or nothing moved for a minute.
    """
    seen, changed = -1, time.monotonic()
    interval = SECONDS_BETWEEN_LOOKS if count == order.counted else SECONDS_BETWEEN_COUNTS
    while (now_there := await count()) < wanted:
        if now_there != seen:
            seen, changed = now_there, time.monotonic()
        if not program.is_running():
            raise RunError(f"{order.contestant.name} ended after {seen} of {wanted}: {last_words(order.log)}")
        if time.monotonic() - changed > SECONDS_WITHOUT_PROGRESS:
            raise RunError(f"{order.contestant.name} stays at {seen} of {wanted}: {last_words(order.log)}")
        await asyncio.sleep(interval)


async def verify(order: _Work, calls: int) -> None:
    """See that each message was handled once, and that none is left.

    Raises:
        RunError: it was not so.
    """
    rows = await order.finished.count() if order.contestant.finished is not None else order.messages
    left = await messages_left(order.given) if order.contestant.queue is not None else 0
    if (calls, rows, left) != (order.messages, order.messages, 0):
        raise RunError(
            f"{order.contestant.name}: of {order.messages} messages, {calls} calls, {rows} rows,"
            f" {left} left in the queue: {last_words(order.log)}"
        )


async def messages_left(given: Mapping[str, str]) -> int:
    """Return how many messages the queue holds, now that its consumer is gone and none are out for an ack."""
    connection = await aiormq.connect(given["BENCH_AMQP_URL"])
    try:
        return await depth(connection, given["BENCH_QUEUE"])
    finally:
        await connection.close()


def last_words(log: Path) -> str:
    """Return the end of a log."""
    return log.read_text(errors="replace")[-LAST_CHARACTERS:] or "it said nothing"

"""One run of one contestant: fill, start, wait for the last call or row, stop, and see that all was done."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import processor_time, tally
from benchmarks.contestant import Contestant
from benchmarks.environment import peers_python
from benchmarks.payload import SIZE
from benchmarks.prefill import prefill
from benchmarks.servers import BenchServers, Place
from benchmarks.watching import Watch, watching
from broker_worker.local.process import KeptProcess, Program

ROOT = Path(__file__).parents[1]
SECONDS_BETWEEN_LOOKS = 0.003
SECONDS_WITHOUT_PROGRESS = 60.0
SECONDS_TO_FILL = 300.0
SECONDS_FOR_ACKS = 1.0  # after the end: Celery acks a moment after the task, and a stop in between loses that
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


@dataclass(frozen=True, slots=True)
class Turn:
    """When a run may have the machine for itself, and when it no longer needs it."""

    before: asyncio.Task[None] | None = None  # the run before this one
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def come(self) -> None:
        """Return when the run before has stopped all that it started."""
        if self.before is not None:
            await asyncio.wait([self.before])


async def run_once(
    contestant: Contestant, servers: BenchServers, messages: int, turn: Turn | None = None
) -> Run:
    """Have one contestant do `messages`, in its turn.

    Raises:
        RunError: it ended early, made no progress for a minute, or did another number than it was given.
    """
    with TemporaryDirectory(prefix="broker-worker-bench-") as name:
        folder = Path(name)
        async with servers.place() as place:
            given = environment(contestant, place, messages, folder)
            await fill(contestant, given, folder)
            async with watching(contestant, given) as watch:
                return await work(_Work(contestant, given, folder, messages, watch, turn or Turn()))


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
        "BENCH_SIZE": str(SIZE),
        "BENCH_TALLY": str(folder / "tally"),
        "PYTHONPATH": str(ROOT),
        **contestant.variables,
    }


async def fill(contestant: Contestant, given: Mapping[str, str], folder: Path) -> None:
    """Put the tasks where they are taken from."""
    if not contestant.fills:
        await prefill(
            given["BENCH_AMQP_URL"],
            queue=given["BENCH_QUEUE"],
            messages=int(given["BENCH_MESSAGES"]),
            size=int(given["BENCH_SIZE"]),
        )
        return
    log = folder / "fill.log"
    filling = start(contestant, "fill", given, log)
    code = await asyncio.to_thread(filling.wait, SECONDS_TO_FILL)
    if code:
        raise RunError(f"{contestant.name}: fill ended with {code}:\n{last_words(log)}")


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


@dataclass(frozen=True, slots=True)
class _Work:
    contestant: Contestant
    given: Mapping[str, str]
    folder: Path
    messages: int
    watch: Watch
    turn: Turn

    @property
    def log(self) -> Path:
        return self.folder / "work.log"

    @property
    def stamps(self) -> Path:
        return self.folder / "tally"

    async def called(self) -> int:
        return tally.counted(self.stamps)


async def work(order: _Work) -> Run:
    """Start it, time it, stop it, and look whether all was done once."""
    await order.turn.come()
    program = start(order.contestant, "work", order.given, order.log)
    begins_at_delivery = order.contestant.begins_at == "delivery"
    try:
        await until(1, order.watch.taken if begins_at_delivery else order.called, order, program)
        began, before = time.monotonic(), processor_time.below(program.pid)
        await until(order.messages, order.called, order, program)
        await until(order.messages, order.watch.finished, order, program)
        ended, used = time.monotonic(), processor_time.below(program.pid) - before
        await asyncio.sleep(SECONDS_FOR_ACKS)
    finally:
        order.turn.is_over.set()
        await asyncio.to_thread(program.stop, SECONDS_TO_STOP)
        await asyncio.to_thread(program.end)
    stamps = tally.stamps(order.stamps)
    await verify(order, len(stamps))
    began = began if begins_at_delivery else min(stamps)
    ended = max(stamps) if order.contestant.finished is None else ended
    return Run(order.messages, ended - began, used)


async def until(wanted: int, count: Callable[[], Awaitable[int]], order: _Work, program: KeptProcess) -> None:
    """Look until `count` gives as many as are wanted.

    Raises:
        RunError: the program ended, or nothing moved for a minute.
    """
    name = order.contestant.name
    seen, changed = -1, time.monotonic()
    while (now_there := await count()) < wanted:
        if now_there != seen:
            seen, changed = now_there, time.monotonic()
        if not program.is_running():
            raise RunError(f"{name} ended after {seen} of {wanted}:\n{last_words(order.log)}")
        if time.monotonic() - changed > SECONDS_WITHOUT_PROGRESS:
            raise RunError(f"{name} stays at {seen} of {wanted}:\n{last_words(order.log)}")
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


async def verify(order: _Work, calls: int) -> None:
    """See that each message was handled once, and that none is left, now that none is out for an ack.

    Raises:
        RunError: it was not so.
    """
    rows, left = await order.watch.finished(), await order.watch.left()
    if (calls, rows, left) != (order.messages, order.messages, 0):
        raise RunError(
            f"{order.contestant.name}: of {order.messages} messages, {calls} calls, {rows} rows finished,"
            f" {left} left in the queue:\n{last_words(order.log)}"
        )


def last_words(log: Path) -> str:
    """Return the end of a log."""
    return log.read_text(errors="replace")[-LAST_CHARACTERS:] or "it said nothing"

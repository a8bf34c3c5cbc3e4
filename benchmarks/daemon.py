"""A daemon of broker_worker as an operator runs it, for the measures that look at one from outside."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiormq
import aiormq.abc

from benchmarks.servers import Place
from broker_worker.local.network import free_ports
from broker_worker.local.process import KeptProcess, Program

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("broker-worker")
QUEUE = "bench"  # its name to publishers
WORK_QUEUE = f"bw.q.{QUEUE}"
STARTED_AT = 19  # field of /proc/<pid>/stat behind the name in brackets; the state is 0, the parent 1
PARENT = 1
TICKS = os.sysconf("SC_CLK_TCK")
SECONDS_TO_START = 60.0
SECONDS_TO_STOP = 40.0
SECONDS_BETWEEN_LOOKS = 0.005
KIBIBYTES = 1024.0
LAST_CHARACTERS = 3_000


class DaemonError(Exception):
    """The daemon did not do what the measure needs."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon that consumes."""

    program: KeptProcess
    log: Path
    pid: int  # its own; `program.pid` is its keeper's
    seconds_to_consume: float  # from its fork until the broker knew its consumer

    def resident_mebibytes(self) -> float:
        """Return how much of its memory is in RAM, shared pages included: what `ps` calls RSS."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) / KIBIBYTES
        raise DaemonError(f"the kernel does not say how much memory process {self.pid} has")


async def prepare(place: Place) -> None:
    """Make schema and topology, as a deployment does before daemons start.

    Raises:
        DaemonError: a command failed.
    """
    await asyncio.gather(_command(place, "migrate"), _command(place, "topology", "apply"))


@asynccontextmanager
async def daemon(place: Place, log: Path, settings: Mapping[str, str] | None = None) -> AsyncIterator[Daemon]:
    """Run `broker-worker run` until the end of the block; it consumes when the block begins.

    Every setting is the default but the addresses, the handlers, the queue's name, and what `settings` says.

    Raises:
        DaemonError: it ended, or did not consume within a minute, or ended with an error.
    """
    program = KeptProcess(
        Program(
            command=[str(COMMAND), "run"], environment=_environment(place, settings), folder=None, log=log
        )
    )
    try:
        yield await _until_consuming(program, place, log)
        await asyncio.to_thread(program.stop, SECONDS_TO_STOP)
        if code := program.wait(SECONDS_TO_STOP):
            raise DaemonError(f"the daemon ended with {code}: {last_words(log)}")
    finally:
        await asyncio.to_thread(program.end)


async def consumers(connection: aiormq.abc.AbstractConnection, queue: str) -> int:
    """Return how many consumers the broker knows of a queue."""
    channel = await connection.channel(publisher_confirms=False)
    answer = await channel.queue_declare(queue, passive=True)
    await channel.close()
    return answer.consumer_count or 0


def last_words(log: Path) -> str:
    """Return the end of a log."""
    return log.read_text(errors="replace")[-LAST_CHARACTERS:] or "it said nothing"


async def _until_consuming(program: KeptProcess, place: Place, log: Path) -> Daemon:
    """Ask the broker, and not the daemon, which has enough to do."""
    connection = await aiormq.connect(place.amqp_url)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not await consumers(connection, WORK_QUEUE):
            if not program.is_running() or time.monotonic() > deadline:
                raise DaemonError(f"the daemon does not consume: {last_words(log)}")
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
    finally:
        await connection.close()
    pid, started_at = _only_child(program.pid)
    return Daemon(program, log, pid, now - started_at)


async def _command(place: Place, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *words,
        env=_environment(place, None),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaint = await process.communicate()
    if process.returncode:
        raise DaemonError(f"broker-worker {' '.join(words)} failed: {complaint.decode(errors='replace')}")


def _environment(place: Place, settings: Mapping[str, str] | None) -> dict[str, str]:
    base = {
        name: value for name, value in os.environ.items() if not name.startswith(("BROKER_WORKER_", "BENCH_"))
    }
    base.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start compiles everything again
    (port,) = free_ports(1)
    ours = {
        "AMQP_URL": place.amqp_url,
        "DATABASE_URL": place.database_url,
        "HANDLERS": "benchmarks.runners.watched_handlers",
        "QUEUES": f"{QUEUE}:16",
        "HTTP_BIND": f"127.0.0.1:{port}",
        **(settings or {}),
    }
    return {
        **base,
        "PYTHONPATH": str(ROOT),
        **{f"BROKER_WORKER_{name}": value for name, value in ours.items()},
    }


def _only_child(parent: int) -> tuple[int, float]:
    """Return the pid of the child of a keeper, and when it began, in seconds of the clock CLOCK_BOOTTIME."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # the name in brackets may hold anything, so count from its end
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[PARENT]) == parent:
                return int(entry.name), int(fields[STARTED_AT]) / TICKS
    raise DaemonError("the daemon has ended")

"""The daemons of a run: each place has one, and starts it again whatever ended it, as a supervisor does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.processes import Kept, children_of, open_files, resident, threads
from tests.faults.proxy import Gate
from tests.faults.records import LogLine, Process, Record, line

ROOT = Path(__file__).parents[2]
LOOK = 0.05
BACKOFF = 0.2
SECONDS_TO_END = 45.0
SECONDS_TO_BE_READY = 60.0


@dataclass(slots=True, eq=False)
class Place:
    """Where one daemon runs, through gates of its own."""

    name: str
    amqp: Gate
    postgres: Gate
    http_port: int
    environment: Mapping[str, str]
    folder: Path
    note: Callable[[Record], None]
    generation: int = 0
    pause: float = 0.0  # before the next start
    is_told: bool = False  # to end; or killed
    stopping: bool = False
    _kept: Kept | None = None
    _began: float = 0.0

    @property
    def process(self) -> str:
        """The name of the process that runs now."""
        return f"{self.name}.{self.generation}"

    @property
    def pid(self) -> int:
        return 0 if self._kept is None else self._kept.pid

    async def run(self) -> None:
        """Keep a daemon running until `stop`."""
        while not self.stopping:
            self._start()
            assert self._kept is not None
            has_begun = False
            while self._kept.is_running():
                if not has_begun and self.pid:
                    self.note(Process(kind="began", process=self.process, pid=self.pid))
                    has_begun = True
                await asyncio.sleep(LOOK)
            code = self._kept.exit_code()
            is_expected = self.is_told or code < 0
            self.note(Process(kind="ended", process=self.process, exit_code=code, is_expected=is_expected))
            self.is_told = False
            pause, self.pause = self.pause, 0.0
            await asyncio.sleep(max(pause, BACKOFF))

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the daemon; whether there is one."""
        self.is_told |= number in {signal.SIGTERM, signal.SIGKILL}
        return self._kept is not None and self._kept.signal(number)

    def kill(self, *, pause: float = 0.0) -> bool:
        self.pause = pause
        return self.signal(signal.SIGKILL)

    def kill_children(self) -> int:
        """Kill the processes in which its handlers run; return how many."""
        found = children_of(self.pid) if self.pid else []
        # one that tries its first child refuses to start without
        self.is_told |= bool(found) and time.monotonic() - self._began < SECONDS_TO_BE_READY
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    async def replace(self) -> None:
        """Have it end in order, and wait for the next one to be ready."""
        before = self.generation
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_END
        while self.generation == before and time.monotonic() < deadline:
            await asyncio.sleep(LOOK)
        if self.generation == before:
            self.note(LogLine(process=self.process, line="the runner: it did not end when it was told to"))
            self.kill()
        await self.ready()

    async def ready(self) -> bool:
        """Wait until it says that it works."""
        deadline = time.monotonic() + SECONDS_TO_BE_READY
        while time.monotonic() < deadline:
            if await asyncio.to_thread(self._get, "/readyz") == 200:
                return True
            await asyncio.sleep(LOOK * 2)
        return False

    async def stop(self) -> None:
        """End it in order and for good."""
        self.stopping = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_END
        while self._kept is not None and self._kept.is_running() and time.monotonic() < deadline:
            await asyncio.sleep(LOOK)
        self.end()

    def end(self) -> None:
        """End it at once; no other follows."""
        self.stopping = True
        if self._kept is not None:
            self._kept.end()

    def sample(self, oldest_transaction: float) -> None:
        """Write down what it holds now."""
        pid = self.pid
        if rss := resident(pid):
            self.note(
                Process(
                    kind="sample",
                    process=self.process,
                    pid=pid,
                    rss=rss,
                    fds=open_files(pid),
                    threads=threads(pid),
                    backends=len(self.postgres.carriers),
                    oldest_transaction=oldest_transaction,
                )
            )

    def _start(self) -> None:
        self.generation += 1
        self._began = time.monotonic()
        self.amqp.process = self.postgres.process = self.process
        base = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
        base.pop("PYTHONDONTWRITEBYTECODE", None)
        self._kept = Kept(
            [sys.executable, "-m", "broker_worker", "run"],
            {**base, "PYTHONPATH": str(ROOT), **self.environment, "CHAOS_PROCESS": self.process},
            self.folder / f"{self.process}.log",
        )

    def _get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def write_logs(folder: Path) -> None:
    """Write what daemons logged as a file of records."""
    with (folder / "logs.jsonl").open("a") as lines:
        for path in sorted(folder.glob("worker-*.log")):
            for text in path.read_text(errors="replace").splitlines():
                lines.write(line(LogLine(process=path.stem, line=text)) + "\n")

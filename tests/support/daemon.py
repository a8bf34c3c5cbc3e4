"""The daemon as a process, as an operator runs it: by environment variables, signals and its probes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from broker_worker.local.network import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def until(what: str, probe: Callable[[], T], *, seconds: float = 60.0) -> T:
    """Ask `probe` until its answer is true, and return it; `what` is said when time is over."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := probe():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(
                f"in {seconds:.0f} s it did not come to this: {what}; last answer: {answer!r}"
            )
        time.sleep(0.05)


class Process(Protocol):
    """What of `subprocess.Popen` is used of a daemon."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def spawn(environment: dict[str, str], log: Path) -> Process:
    """Start `broker-worker run` in an interpreter of its own."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "broker_worker", "run"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


class DaemonProcess:
    """One running `broker-worker run`."""

    def __init__(
        self,
        environment: Mapping[str, str],
        log: Path,
        *,
        spawn: Callable[[dict[str, str], Path], Process] = spawn,
    ) -> None:
        (self._port,) = free_ports(1)  # below those of clients: a slow start takes it much later
        self.log = log
        base = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
        base.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start compiles everything again
        ours = {
            "BROKER_WORKER_HTTP_BIND": f"127.0.0.1:{self._port}",
            "BROKER_WORKER_LOG_FORMAT": "json",
        }
        self.process = spawn({**base, **ours, **environment}, log)

    def get(self, path: str) -> tuple[int, str]:
        """The status and body of one probe; 0 while nobody answers."""
        try:
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                return answer.status, answer.read().decode()
        except (OSError, HTTPException):  # also where it ends in the middle of its answer
            return 0, ""

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.tail()}")
        return self.get("/readyz")[0] == 200

    def wait_ready(self) -> None:
        until("the daemon is ready", self.is_ready)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        return self.process.wait(seconds)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def lines(self) -> list[dict[str, object]]:
        whole, _, _ = self.log.read_text(errors="replace").rpartition("\n")  # the last may still be written
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


@contextmanager
def daemon(environment: Mapping[str, str], log: Path, *, ready: bool = True) -> Iterator[DaemonProcess]:
    running = DaemonProcess(environment, log)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        running.end()

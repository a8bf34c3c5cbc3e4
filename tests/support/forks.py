"""Daemons that are forked from a process which has imported everything: for tests that start hundreds.

Each is a process of its own, with its own environment and its own log, as if it had been started by
`python -m broker_worker`; only the interpreter's start and the imports are shared.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from broker_worker.store.database import Database
from tests.support.daemon import ROOT


class Forks:
    """The process that they are forked from, seen from the tests; it kills them all when it ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def spawn(self, environment: dict[str, str], log: Path) -> Fork:
        """Start `broker-worker run`."""
        return self.command(environment, log, "run")

    def command(self, environment: dict[str, str], log: Path, *arguments: str) -> Fork:
        """Start any command."""
        log.touch()
        order: dict[str, object] = {"environment": environment, "log": str(log), "arguments": arguments}
        return Fork(self, int(self.ask(order)))

    def ask(self, order: dict[str, object]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Fork:
    """One daemon; satisfies `tests.support.daemon.Process`."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self._forks = forks
        self._ended = os.pidfd_open(pid)  # until it is reaped its number can't be another's
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._end_within(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._end_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"daemon {self.pid}", timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._ended, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], seconds)[0]:
            self.returncode = int(self._forks.ask({"reap": self.pid}))
            os.close(self._ended)
        return self.returncode


def _serve() -> None:
    """Fork and reap as told, a line each, until there is nobody to tell it."""
    for module in (
        "broker_worker.app",
        "broker_worker.failpoints",
        "tests.support.failpoint_handlers",
    ):  # what all of them need
        import_module(module)
    Database.open(lambda: "", schema="public", pool_size=1)  # loads the dialect; connects to nothing
    gc.freeze()  # a collection in a child would copy every page
    running: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if pid := order.get("reap"):
            _, status = os.waitpid(pid, 0)
            running.discard(pid)
            print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the answer
            continue
        pid = os.fork()
        if pid == 0:
            _become(order["environment"], order["log"], order["arguments"])
        running.add(pid)
        print(pid, flush=True)  # noqa: T201 - the answer
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _become(environment: dict[str, str], log: str, arguments: list[str]) -> NoReturn:
    from broker_worker.cli import main  # noqa: PLC0415 - imported with the rest

    code: object = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        faulthandler.register(signal.SIGUSR1)  # so that one that does not end can be asked where it is
        sys.argv = ["broker-worker", *arguments]
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - shown, as an interpreter does at its end
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    _serve()

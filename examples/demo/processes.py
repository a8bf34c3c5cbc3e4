"""Processes that this program starts and that do not outlive it."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
LAST_LINES = 15


class ProcessFailedError(Exception):
    """A process ended, or did not begin, other than it should have; with the end of its log."""


class Child:
    """One process in a session of its own: a Ctrl-C is for us, and we end it in order."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, folder: Path
    ) -> None:
        """`folder` takes its output: `<name>.out` and `<name>.log`."""
        self._name = name
        self._out, self._log = folder / f"{name}.out", folder / f"{name}.log"
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call into libc, loaded before
            )

    def require_running(self) -> None:
        """Raise `ProcessFailedError` if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise self.failure(f"ended with the exit code {code}")

    async def output(self, *, within: float) -> str:
        """Wait for its end; return what it printed.

        Raises:
            ProcessFailedError: its exit code was not 0, or it took longer than `within` seconds.
        """
        deadline = time.monotonic() + within
        while (said := self.output_if_ended()) is None:
            if time.monotonic() > deadline:
                raise self.failure(f"did not end within {within:g} s")
            await asyncio.sleep(0.02)
        return said

    def output_if_ended(self) -> str | None:
        """Return what it printed, or nothing while it runs; raise `ProcessFailedError` if it failed."""
        code = self._process.poll()
        if code:
            raise self.failure(f"ended with the exit code {code}")
        return None if code is None else self._out.read_text()

    def stop(self, *, within: float) -> int:
        """Ask it to end, insist after `within` seconds; the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def failure(self, what: str) -> ProcessFailedError:
        """Build the error that tells `what`, and the last that it said."""
        said = [
            line for path in (self._out, self._log) for line in path.read_text(errors="replace").splitlines()
        ]
        return ProcessFailedError("\n  ".join([f"{self._name} {what}", *said[-LAST_LINES:]]))


@contextmanager
def child(
    name: str, command: Sequence[str], environment: Mapping[str, str], *, folder: Path, grace: float = 5
) -> Iterator[Child]:
    """Have a process for as long as the context lasts; `grace` is how many seconds it gets to end."""
    process = Child(name, command, environment, folder=folder)
    try:
        yield process
    finally:
        process.stop(within=grace)


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however that came."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

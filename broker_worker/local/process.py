"""The owner's side of a kept process: start it, stop it, kill it, and be sure that it goes when we go."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broker_worker.local.errors import LocalServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEEPER = Path(__file__).with_name("keeper.py")
STOP, KILL = b"s", b"k"  # as in keeper.py, which must not be imported: it is a script


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, under whose rights a server runs."""

    user: int
    group: int

    @classmethod
    def unprivileged(cls) -> Account | None:
        """An account for servers that refuse to run as root, None where we are not root ourselves."""
        if os.geteuid() != 0:
            return None
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is to run: a command, and how it is told to end."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path | None  # its working folder, removed when the owner ends; None is ours, which stays
    log: Path | None  # None is where ours goes
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM  # an orderly end
    end_signal: signal.Signals = signal.SIGKILL  # the fastest end that leaves nothing in the system


class KeptProcess:
    """One running program under its keeper; it ends when this process ends, in whatever way."""

    def __init__(self, program: Program) -> None:
        account = program.account
        user, group = (str(account.user), str(account.group)) if account else ("", "")
        folder = "" if program.folder is None else str(program.folder)
        signals = [str(int(program.stop_signal)), str(int(program.end_signal))]
        with nullcontext() if program.log is None else program.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the owner, who then ends it in order.
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", KEEPER, folder, user, group, *signals, *program.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(program.environment),
                start_new_session=True,
            )
        self._name = Path(program.command[0]).name

    @property
    def pid(self) -> int:
        """The keeper's process id: the program and all its descendants are below it."""
        return self._keeper.pid

    def is_running(self) -> bool:
        """Whether the program has not ended yet."""
        return self._keeper.poll() is None

    def wait(self, seconds: float) -> int:
        """Return the exit status of a program that ends by itself."""
        try:
            return self._keeper.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LocalServerError(f"{self._name} did not end within {seconds:g} s") from None
        finally:
            self._hang_up()

    def ask(self) -> None:
        """Ask for an orderly end, without waiting for it; asked again, the program gets the signal again."""
        self._order(STOP)

    def stop(self, seconds: float) -> None:
        """Ask for an orderly end and wait for it; kill what has not ended by then."""
        self.ask()
        try:
            self._keeper.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._hang_up()

    def kill(self) -> None:
        """End it and all its children with SIGKILL, as a power cut would."""
        self._order(KILL)
        self._keeper.wait()
        self._hang_up()

    def end(self) -> None:
        """End it for good, and its folder with it."""
        self._hang_up()
        self._keeper.wait()

    def _order(self, order: bytes) -> None:
        if self.is_running() and self._keeper.stdin is not None:
            try:
                self._keeper.stdin.write(order)
                self._keeper.stdin.flush()
            except BrokenPipeError:
                return  # it ended between the two lines

    def _hang_up(self) -> None:
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()


def last_words(log: Path) -> str:
    """Return the end of a log as one line."""
    return " ".join(log.read_text(errors="replace").split())[-500:] or "it said nothing"

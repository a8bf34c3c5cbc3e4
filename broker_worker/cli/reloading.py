"""The daemon of `broker-worker dev`: a process that starts anew whenever a source file changes."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from broker_worker.errors import BrokerWorkerError, ConfigurationError

if TYPE_CHECKING:
    from broker_worker.local.process import KeptProcess

FOREIGN = frozenset({"__pycache__", "site-packages", "node_modules"})
MILLISECONDS_BETWEEN_LOOKS = 200  # at the daemon; a change is seen within 50 ms
SECONDS_BETWEEN_LOOKS = 0.05  # at a daemon that is ending
SECONDS_BEYOND_GRACE = 15.0  # for the steps of its end after running tasks; it has limits of its own


class Wish:
    """What signals ask of us: to stop, and asked again, to hurry."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.asked = 0

    def __call__(self, *_: object) -> None:
        """Be the handler of a signal."""
        self.asked += 1
        self.stop.set()

    @classmethod
    @contextmanager
    def from_signals(cls) -> Iterator[Wish]:
        """Take SIGINT and SIGTERM from now on."""
        wish = cls()
        former = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield wish
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


class Reloading:
    """Runs one daemon after the other until it is wished to stop."""

    def __init__(self, environment: Mapping[str, str], *, grace: float, wish: Wish) -> None:
        """`grace` is what the daemon gives to running tasks, in seconds."""
        self._environment = environment
        self._patience = grace + SECONDS_BEYOND_GRACE
        self._wish = wish
        self._daemon: KeptProcess | None = None

    def run(self, folders: Sequence[Path]) -> None:
        """Serve until the wish to stop; start anew at each change of a source below `folders`.

        Raises:
            BrokerWorkerError: the system does not let us watch so many folders.
        """
        from watchfiles import watch  # noqa: PLC0415 - of the extra `local`

        changes = watch(
            *folders,
            watch_filter=lambda _, path: is_source(Path(path), folders),
            stop_event=self._wish.stop,
            rust_timeout=MILLISECONDS_BETWEEN_LOOKS,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        try:
            self._start()
            for changed in changes:
                if changed:
                    say(f"{named(Path(path) for _, path in changed)} changed, the daemon starts anew")
                    self._end()
                    if not self._wish.stop.is_set():
                        self._start()
                else:
                    self._look()
        except OSError as error:
            raise BrokerWorkerError(
                f"files can't be watched: {error}; WATCHFILES_FORCE_POLLING=true looks at them instead"
            ) from error
        finally:
            self._end()

    def _start(self) -> None:
        from broker_worker.local.process import KeptProcess, Program  # noqa: PLC0415

        self._daemon = KeptProcess(
            Program(
                command=[sys.executable, "-m", "broker_worker", "run"],
                environment=self._environment,
                folder=None,
                log=None,
                end_signal=signal.SIGTERM,
            )
        )

    def _look(self) -> None:
        """Say it once if the daemon has ended by itself."""
        if self._daemon is not None and not self._daemon.is_running():
            self._end()
            say("the daemon has ended; it starts again when a file changes")

    def _end(self) -> None:
        """Return when the daemon has ended: in order, in a hurry if wished, by force if it must be."""
        if self._daemon is None:
            return
        daemon, self._daemon = self._daemon, None
        daemon.ask()
        wished, deadline = max(self._wish.asked, 1), time.monotonic() + self._patience
        while daemon.is_running() and time.monotonic() < deadline:
            if self._wish.asked > wished:
                wished = self._wish.asked
                daemon.ask()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        daemon.kill()


def say(line: str) -> None:
    """Print a line that can be told from those of the daemon."""
    typer.secho(f"dev: {line}", bold=True)


def source_folders(handlers: Iterable[str]) -> list[Path]:
    """Find where the sources lie: the current directory, and the packages of the handlers' modules.

    Raises:
        ConfigurationError: there is no such module.
    """
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    folders = [here]
    for name in handlers:
        top = name.partition(":")[0].partition(".")[0]
        spec = importlib.util.find_spec(top)  # of a module without a dot: imports nothing
        if spec is None:
            raise ConfigurationError(
                f"--handlers {name}: no module {top} is here or among the installed ones"
            )
        places = spec.submodule_search_locations or ([str(Path(spec.origin).parent)] if spec.origin else [])
        folders += [Path(place) for place in places]
    inner = {each for each in folders for other in folders if each != other and each.is_relative_to(other)}
    return [each for each in dict.fromkeys(folders) if each not in inner]


def is_source(file: Path, folders: Iterable[Path]) -> bool:
    """Whether a change of `file` is one of the program: Python, below a folder, not hidden, not installed."""
    parts = [file.relative_to(folder).parts for folder in folders if file.is_relative_to(folder)]
    return file.suffix == ".py" and any(
        not any(part.startswith(".") or part in FOREIGN for part in below) for below in parts
    )


def named(files: Iterable[Path]) -> str:
    """Name one file, and how many more there are."""
    first, *others = sorted({file.name for file in files})
    return f"{first} and {len(others)} more" if others else first

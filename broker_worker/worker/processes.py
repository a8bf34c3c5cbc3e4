"""Child processes: each runs one attempt at a time, and takes nothing down with it when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from broker_worker.context import BaseContext, Hands
from broker_worker.errors import BrokerWorkerError, ChildCrashedError
from broker_worker.framing import FrameError, frame, receive_frame
from broker_worker.handler import Handler, Limits
from broker_worker.notation import show_size
from broker_worker.outcome import Outcome
from broker_worker.sending import Sent
from broker_worker.worker.conversation import (
    END_GRACE,
    Answer,
    Begin,
    Complete,
    Failed,
    Lost,
    OutOfMemory,
    Progress,
    Ready,
    Returned,
    Save,
    Send,
    SendEvent,
    Start,
    Unable,
    Word,
    outcome_of,
    read_word,
    sent_by,
    write_word,
)

START_LIMIT = 60.0  # seconds until a child is ready
REAP_LIMIT = 2.0  # seconds until a killed process is gone; one that hangs in the kernel is left to it
LAST_WORDS = 1.0  # seconds in which an ended process's pipe is read, where a descendant holds it open
SHOWN_BYTES = 64 * 1024  # of where it crashed
OURS = "BROKER_WORKER_"  # settings, among them every DSN; a handler's own variables are passed on
DATA_PAGES = 5  # the field of /proc/<pid>/statm
PACKAGE = str(Path(__file__).parents[1])


class ProcessPool:
    """Starts children when they are needed and keeps the idle ones; satisfies `ports.ChildProcesses`."""

    def __init__(
        self,
        *,
        modules: Sequence[str],
        limit: int,
        max_result_bytes: int,
        log_level: str = "info",
        log_format: str = "auto",
    ) -> None:
        """Keep at most `limit` idle children; `modules` hold the registries, as in the settings."""
        self._modules = tuple(modules)
        self._limit = limit
        self._max_result_bytes = max_result_bytes
        self._log_level = log_level
        self._log_format = log_format
        self._idle: list[Child] = []  # the last one used is the next: its memory is warm
        self._busy: set[Child] = set()
        self._is_closed = False

    @asynccontextmanager
    async def child(self, *, memory_limit: int | None = None) -> AsyncIterator[Child]:
        """Take an idle child, or start one; a child that did not end its attempt well is ended here.

        One that earlier attempts left holding more than half of `memory_limit` gives way to
        a fresh one: what others left behind must not end this attempt.

        Raises:
            ChildCrashedError: it can't start.
        """
        child = await self._take(memory_limit) or await self._start()
        self._busy.add(child)
        try:
            yield child
        finally:
            self._busy.discard(child)
            if child.is_usable and len(self._idle) < self._limit and not self._is_closed:
                self._idle.append(child)
            else:
                await child.discard()

    async def close(self) -> None:
        """Let idle children close their resources, 2 s at most, and kill all the others."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(child.end() for child in idle), *(child.kill() for child in self._busy))

    async def _take(self, memory_limit: int | None) -> Child | None:
        while self._idle:
            child = self._idle.pop()
            if child.is_alive and (memory_limit is None or child.memory() <= memory_limit / 2):
                return child
            await child.discard()
        return None

    async def _start(self) -> Child:
        child = Child()
        word = Start(
            modules=self._modules,
            path=tuple(sys.path),
            max_result_bytes=self._max_result_bytes,
            log_level=self._log_level,
            log_format=self._log_format,
        )
        try:
            await child.start(word)
        except BaseException:
            await child.discard()
            raise
        return child


class Child:
    """One process with a pipe in each direction; satisfies `ports.ChildProcess`."""

    def __init__(self) -> None:
        self.is_usable = False  # for an attempt
        self._is_killed = False
        self._limit = ""  # of this attempt's memory, for what is said about a crash
        self._has_ended = asyncio.Event()
        self._reader = asyncio.StreamReader()
        self._process: asyncio.SubprocessTransport | None = None
        self._orders: asyncio.WriteTransport | None = None
        self._reports: asyncio.ReadTransport | None = None
        self._faults = _file_in_memory()  # where a crash leaves the lines that it happened in

    @property
    def is_alive(self) -> bool:
        """Whether it still runs: asked of the kernel, because the event loop hears of an end later."""
        if self._process is None:
            return False
        try:
            return os.waitid(os.P_PID, self._process.get_pid(), os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    async def start(self, start: Start) -> None:
        """Start the process, and return when it is ready.

        Raises:
            ChildCrashedError: it ended, or was not ready after 60 s.
        """
        try:
            async with asyncio.timeout(START_LIMIT):
                await self._spawn()
                self._say(start)
                word = await self._hear()
        except TimeoutError as error:
            raise ChildCrashedError(f"could not start: not ready after {START_LIMIT:.0f} s") from error
        except (OSError, ChildCrashedError) as error:
            raise ChildCrashedError(f"could not start: {error}") from error
        match word:
            case Ready():
                self.is_usable = True
            case Unable(reason):
                raise ChildCrashedError(f"could not start: {reason}")
            case _:
                raise ChildCrashedError("could not start: its first word is not that it is ready")

    async def run(
        self,
        handler: Handler,
        context: BaseContext,
        *,
        limits: Limits,
        jitter: float,
        time_left: timedelta | None = None,
    ) -> Outcome:
        """Run an attempt, and do for it what it asks of the context's hands.

        Cancelled, or where those hands raise what is no error of ours, the process is killed.

        Raises:
            ChildCrashedError: the process ended before the attempt did; the message says how.
        """
        self.is_usable = False
        self._limit = f" (memory limit {show_size(handler.memory_limit)})" if handler.memory_limit else ""
        try:
            self._say(Begin.of(handler, context, limits=limits, jitter=jitter, time_left=time_left))
            outcome = await self._converse(context.hands)
            self.is_usable = True
        finally:
            if not self.is_usable:
                await self.kill()
        return outcome

    def memory(self) -> int:
        """Bytes that count for a memory limit; 0 where the system does not tell."""
        if self._process is None:
            return 0
        try:
            fields = Path(f"/proc/{self._process.get_pid()}/statm").read_text(encoding="ascii").split()
        except OSError:
            return 0
        return int(fields[DATA_PAGES]) * os.sysconf("SC_PAGE_SIZE")

    async def end(self) -> None:
        """Tell an idle child that there is nothing more to do; discard it when it is gone, or after 2 s."""
        if self._orders is not None:
            self._orders.close()
        await self._wait_for_end(END_GRACE)
        await self.discard()

    async def kill(self) -> None:
        """Kill it and what it has started; return when it is gone, after 2 s at most. Safe to repeat."""
        self.is_usable = False
        if self._process is not None and not self._is_killed:
            self._is_killed = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.get_pid(), signal.SIGKILL)
        await self._wait_for_end(REAP_LIMIT)

    async def discard(self) -> None:
        """Kill it, and let go of everything that belongs to it. Safe to repeat."""
        try:
            await self.kill()
        finally:
            if self._orders is not None and not self._orders.is_closing():
                self._orders.abort()
            for each in (self._process, self._reports, self._faults):
                if each is not None:
                    each.close()

    # --- the process ---------------------------------------------------------------------

    async def _spawn(self) -> None:
        """Start a fresh interpreter. Its pipes are its own: handlers print to stdout."""
        loop = asyncio.get_running_loop()
        their_orders, our_orders = _pipe()
        our_reports, their_reports = _pipe()
        with their_orders, their_reports:
            self._orders, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, our_orders)
            self._reports, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(self._reader), our_reports
            )
            theirs = [file.fileno() for file in (their_orders, their_reports, self._faults)]
            self._process, _ = await loop.subprocess_exec(
                lambda: _Life(self._note_end),
                *(sys.executable, "-P", "-m", "broker_worker.child", str(os.getpid()), *map(str, theirs)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                pass_fds=theirs,
                env={name: value for name, value in os.environ.items() if not name.upper().startswith(OURS)},
                # A Ctrl-C is for the worker, and what a handler starts is killed with it. A group of its
                # own would do, but uvloop has no `process_group`.
                start_new_session=True,
            )

    def _note_end(self) -> None:
        self._has_ended.set()
        if self._reports is not None:
            asyncio.get_running_loop().call_later(LAST_WORDS, self._reports.close)

    async def _wait_for_end(self, seconds: float) -> None:
        if self._process is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._has_ended.wait()

    async def _crash(self) -> ChildCrashedError:
        """Say how the process ended, once nothing more is heard of it."""
        await self._wait_for_end(LAST_WORDS)
        code = None if self._process is None else self._process.get_returncode()
        is_signal = code is not None and code < 0  # libraries abort, or use a null, where memory ends
        error = ChildCrashedError(f"{_how(code)}{self._limit if is_signal else ''}")
        said = os.pread(self._faults.fileno(), SHOWN_BYTES, 0).decode(errors="replace").splitlines()
        frames = [line for line in said if line.startswith("  File ")]
        theirs = list(takewhile(lambda line: PACKAGE not in line, frames))
        if theirs:
            error.add_note("\n".join(["Most recent call first:", *theirs]))
        return error

    # --- the conversation ----------------------------------------------------------------

    async def _converse(self, hands: Hands) -> Outcome:
        sent: list[Sent] = []
        while True:
            match word := await self._hear():
                case Returned() | Failed() | Lost():
                    return outcome_of(word, sent=tuple(sent))
                case Progress(fraction, note):
                    hands.report_progress(fraction, note)
                case Save() | Send() | SendEvent() | Complete():
                    self._say(await _answer(word, hands, sent))
                case OutOfMemory():
                    raise ChildCrashedError(f"out of memory{self._limit}")
                case _:
                    raise ChildCrashedError("it said what belongs to no attempt")

    def _say(self, word: Word) -> None:
        if self._orders is not None:
            self._orders.write(frame(write_word(word)))  # the child reads in a thread, whatever it does

    async def _hear(self) -> Word:
        try:
            content = await receive_frame(self._reader)
            if content is not None:
                return read_word(content)
        except FrameError as error:
            raise ChildCrashedError(str(error)) from error
        raise await self._crash()


class _Life(asyncio.SubprocessProtocol):
    """Notes the end of a process."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def process_exited(self) -> None:
        self._end()


async def _answer(word: Save | Send | SendEvent | Complete, hands: Hands, sent: list[Sent]) -> Answer:
    """Do what is asked; an error of ours is for the handler, as it would be in the worker."""
    try:
        match word:
            case Save(number, state):
                await hands.save(state)
            case Complete(number, result):
                completion = hands.complete_json(result)
                return Answer(number, sql=completion.sql, parameters=completion.parameters)
            case _:
                hands.send(each := sent_by(word))
                sent.append(each)
    except BrokerWorkerError as error:
        return Answer(word.number, type(error).__name__, str(error))
    return Answer(word.number)


def _how(code: int | None) -> str:
    if code is None:
        return "it closed its pipe to the worker"
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    read, write = os.pipe()
    return open(read, "rb", buffering=0), open(write, "wb", buffering=0)  # noqa: PTH123 - descriptors


def _file_in_memory() -> BinaryIO:
    descriptor = os.memfd_create("faults") if sys.platform == "linux" else os.open(os.devnull, os.O_RDWR)
    return open(descriptor, "r+b", buffering=0)  # noqa: PTH123 - likewise

"""The program of a child process: `python -m broker_worker.child`, started by `worker/processes.py`.

It runs the attempts that its worker hands down, one at a time, and ends with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import inspect
import itertools
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from broker_worker.context import AnyHandler, BaseContext, Completion, current_task, task_fields
from broker_worker.errors import (
    BrokerWorkerError,
    ClaimLostError,
    CommitUnknownError,
    ConfigurationError,
    StoreDataError,
    StoreUnavailableError,
)
from broker_worker.failure import MAX_MESSAGE_BYTES, Refusal, clean
from broker_worker.framing import read_frame, write_frame
from broker_worker.handler import Handler, Way
from broker_worker.loading import load_registries
from broker_worker.outcome import Dead, Outcome, Released, Succeeded
from broker_worker.registry import Registry
from broker_worker.retry import follow_up
from broker_worker.sending import PayloadError, Sent
from broker_worker.telemetry.logs import configure
from broker_worker.worker.conversation import (
    END_GRACE,
    Answer,
    Begin,
    Complete,
    OutOfMemory,
    Progress,
    Ready,
    Save,
    Start,
    Unable,
    Word,
    last_word,
    read_word,
    request,
    write_word,
)
from broker_worker.worker.resources import Resources

PACE = 0.2  # seconds between two words of which the newest is enough
PR_SET_PDEATHSIG = 1  # prctl(2)
STDERR = 2  # the last of the three that every program has
FIRST_TO_GO = "1000"  # where the machine runs out of memory, the kernel ends this one before its worker
ERRORS: Mapping[str, type[BrokerWorkerError]] = {
    kind.__name__: kind for kind in (ClaimLostError, PayloadError, StoreDataError, StoreUnavailableError)
}


def main() -> None:
    """Serve until the worker has no more to do, or is gone."""
    parent, orders, reports, faults = map(int, sys.argv[1:])
    _keep_only((orders, reports, faults))
    faulthandler.enable(faults, all_threads=False)
    _die_with(parent)
    line = Line(orders, reports)
    start = line.start()
    if start is None:
        return
    configure(start.log_level, log_format=start.log_format, stream=sys.stdout, task_fields=task_fields)
    # entered, the runner would begin a loop, which plain handlers don't need
    with closing(asyncio.Runner()) as runner:
        try:
            bench = Bench.open(start, line, runner)
        except BrokerWorkerError as error:
            line.tell(Unable(str(error)))
            return
        line.tell(Ready())
        while (begin := line.next()) is not None:
            bench.run(begin)
        bench.close()


class Line:
    """The child's end of both pipes. A thread listens, so that the worker's end shows at any time."""

    def __init__(self, orders: int, reports: int) -> None:
        self._orders = orders
        self._reports = reports
        self._lock = threading.Lock()
        self._begins: SimpleQueue[Begin | None] = SimpleQueue()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Answer]] = {}
        self._is_busy = False
        self._latest: Word | None = None
        self._has_latest = threading.Event()

    def start(self) -> Start | None:
        """Wait for the first word, and listen from then on."""
        content = read_frame(self._orders)
        word = None if content is None else read_word(content)
        if not isinstance(word, Start):
            return None
        for work in (self._listen, self._tell_latest):
            threading.Thread(target=work, name=f"broker-worker{work.__name__}", daemon=True).start()
        return word

    def next(self) -> Begin | None:
        """Wait for the next attempt; nothing where there is no more to do."""
        return self._begins.get()

    def tell(self, word: Word) -> None:
        """Say something to the worker; from any thread."""
        content = write_word(word)
        with self._lock:
            self._write_latest()
            write_frame(self._reports, content)

    def tell_soon(self, word: Word) -> None:
        """Say something for which the newest is enough: a loop may say it a million times."""
        with self._lock:
            self._latest = word
        self._has_latest.set()

    def end(self, word: Word) -> None:
        """Say how an attempt ended: the next may come."""
        self._is_busy = False
        self.tell(word)

    def ask(self, request: Callable[[int], Word]) -> Future[Answer]:
        """Ask the worker for something, under a number that the answer will have."""
        number = next(self._numbers)
        future: Future[Answer] = Future()
        self._asked[number] = future
        self.tell(request(number))
        return future

    def _tell_latest(self) -> None:
        while self._has_latest.wait():
            self._has_latest.clear()
            with self._lock:
                self._write_latest()
            time.sleep(PACE)

    def _write_latest(self) -> None:
        word, self._latest = self._latest, None
        if word is not None:
            write_frame(self._reports, write_word(word))

    def _listen(self) -> None:
        try:
            while (content := read_frame(self._orders)) is not None:
                match read_word(content):
                    case Begin() as begin:
                        self._is_busy = True
                        self._begins.put(begin)
                    case Answer() as answer:
                        asked = self._asked.pop(answer.number)
                        if asked.set_running_or_notify_cancel():  # else the handler has left it off
                            asked.set_result(answer)
                    case _:
                        break
        finally:
            if self._is_busy:
                os._exit(1)
            self._begins.put(None)
            time.sleep(END_GRACE)
            os._exit(1)  # a resource does not close, or a thread of a handler's does not end


class ChildHands:
    """One attempt's; satisfies `context.Hands`. Whatever it does, the worker does for it."""

    is_cancelled = False  # the worker kills where it would ask a thread to stop

    def __init__(self, line: Line, handler: Handler, registry: Registry, *, max_result_bytes: int) -> None:
        self._line = line
        self._handler = handler
        self._registry = registry
        self._max_result_bytes = max_result_bytes
        self._lock = threading.Lock()
        self._is_over = False

    def report_progress(self, fraction: float, note: str) -> None:
        with self._speaking():
            self._line.tell_soon(Progress(fraction, clean(note, MAX_MESSAGE_BYTES)))

    async def save(self, state: str) -> None:
        _checked(await asyncio.wrap_future(self._ask(lambda number: Save(number, state))))

    def save_from_thread(self, state: str) -> None:
        _checked(self._ask(lambda number: Save(number, state)).result())

    def send(self, sent: Sent) -> None:
        _checked(self._ask(lambda number: request(sent, number)).result())

    def name_of(self, task: AnyHandler | str) -> str:
        name = task if isinstance(task, str) else self._registry.name_of(task)
        if name is None:
            raise ConfigurationError(f"{getattr(task, '__qualname__', task)!r} is not registered as a task")
        return name

    def complete(self, result: object) -> Completion:
        try:
            text = self._handler.serialise(result, max_bytes=self._max_result_bytes)
        except Refusal as refusal:
            raise BrokerWorkerError(refusal.failure.message) from refusal
        return self.complete_json(text)

    def complete_json(self, result: str | None) -> Completion:
        answer = _checked(self._ask(lambda number: Complete(number, result)).result())
        return Completion(answer.sql, answer.parameters)

    def end(self) -> None:
        """Let nothing more be said in this attempt's name: a thread of it may live on."""
        with self._lock:
            self._is_over = True

    def _ask(self, request: Callable[[int], Word]) -> Future[Answer]:
        with self._speaking():
            return self._line.ask(request)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        with self._lock:
            if self._is_over:
                raise BrokerWorkerError("the attempt is over")
            yield


@dataclass(frozen=True, slots=True)
class Bench:
    """What all attempts of this process share."""

    line: Line
    runner: asyncio.Runner
    registry: Registry
    resources: Resources
    max_result_bytes: int

    @classmethod
    def open(cls, start: Start, line: Line, runner: asyncio.Runner) -> Bench:
        """Load the handlers and open their resources.

        Raises:
            BrokerWorkerError: one line about the first thing that is wrong.
        """
        sys.path[:] = start.path
        registry = load_registries(start.modules)
        bench = cls(line, runner, registry, Resources(registry, ways=(Way.PROCESS,)), start.max_result_bytes)
        if bench.has_resources:
            runner.run(bench.resources.open())
        return bench

    @property
    def has_resources(self) -> bool:
        """Whether there is anything to open."""
        return bool(self.registry.resources) or any(each.is_class for each in self.registry.handlers)

    def close(self) -> None:
        """Close what is open."""
        if self.has_resources:
            self.runner.run(self.resources.close())

    def run(self, begin: Begin) -> None:
        """Run one attempt, and say how it ended."""
        try:
            outcome = self._outcome(begin)
        except MemoryError:
            self.line.tell(OutOfMemory())
            os._exit(1)  # what it left behind may be in the way of others
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()  # what a handler printed is not lost where this process is killed later
        self.line.end(last_word(outcome))

    def _outcome(self, begin: Begin) -> Outcome:
        handler = self.registry.lookup(begin.handler)
        if handler is None:
            error = ConfigurationError(f"the task {begin.handler!r} is not registered in the child process")
            return _follow_up(error, begin, None)
        hands = ChildHands(self.line, handler, self.registry, max_result_bytes=self.max_result_bytes)
        context = _context(begin, handler, hands)
        token = current_task.set(context)
        try:
            with _memory_limited(begin.memory_limit):
                return self._attempt(begin, handler, context)
        finally:
            hands.end()
            current_task.reset(token)

    def _attempt(self, begin: Begin, handler: Handler, context: BaseContext) -> Outcome:
        """Do what the executor does for the handlers that run in the worker; raise `MemoryError`."""
        try:
            arguments = handler.bind(context.message.body, context.message.media_type)
            returned = self._call(handler, arguments, context)
            return Succeeded(handler.serialise(returned, max_bytes=self.max_result_bytes))
        except Refusal as refusal:
            if refusal.failure.error_type == MemoryError.__name__:
                raise MemoryError from refusal
            return Dead(refusal.reason, refusal.failure)
        except (ClaimLostError, CommitUnknownError):
            return Released()
        except BaseException as error:  # whatever a handler raises becomes an outcome
            if _is_out_of_memory(error):
                raise MemoryError from error
            return _follow_up(error, begin, handler)

    def _call(self, handler: Handler, arguments: Mapping[str, object], context: BaseContext) -> object:
        keywords = {**arguments, **self.resources.arguments(handler)}
        if handler.context_parameter is not None:
            keywords[handler.context_parameter] = context
        returned = self.resources.function(handler)(**keywords)
        if not inspect.isawaitable(returned):
            return returned
        ended = self.runner.run(_end_of(returned), context=copy_context())
        if isinstance(ended, _Raised):
            raise ended.error
        return ended


@dataclass(frozen=True, slots=True)
class _Raised:
    """An error on its way out of the event loop: raised in there, some would end the loop."""

    error: BaseException


async def _end_of(awaitable: Awaitable[object]) -> object:
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 - raised again outside
        return _Raised(error)


def _context(begin: Begin, handler: Handler, hands: ChildHands) -> BaseContext:
    return handler.context_type(
        message=begin.message.message(),
        attempt=begin.attempt,
        max_attempts=begin.max_attempts,
        may_be_repeat=begin.may_be_repeat,
        deadline=begin.deadline,
        saved_json=begin.saved,
        hands=hands,
    )


def _follow_up(error: BaseException, begin: Begin, handler: Handler | None) -> Outcome:
    limits = begin.limits() if handler is None else handler.limits(begin.limits())
    return follow_up(
        error, attempt=begin.attempt, policy=limits.policy, jitter=begin.jitter, time_left=begin.time_left
    )


def _checked(answer: Answer) -> Answer:
    """Raise what the worker answered with, if it is an error."""
    if answer.error is not None:
        raise ERRORS.get(answer.error, BrokerWorkerError)(answer.message)
    return answer


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(MemoryError) is not None
    return isinstance(error, MemoryError)


@contextmanager
def _memory_limited(limit: int | None) -> Iterator[None]:
    """Limit the data of this process: heap, anonymous mappings, the stacks of threads."""
    if limit is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _keep_only(ours: tuple[int, ...]) -> None:
    """Close what else was inherited: asyncio's loop does it before this program begins, uvloop's does not."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers
        descriptor = int(name)
        with suppress(OSError):  # that of the listing is closed already
            # what was opened since is not inheritable
            if descriptor > STDERR and descriptor not in ours and os.get_inheritable(descriptor):
                os.close(descriptor)
    for descriptor in ours:
        os.set_inheritable(descriptor, False)  # what a handler starts has no part in this  # noqa: FBT003


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its worker; no other signal to the worker's group does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, not for the programs that a handler starts
    if sys.platform == "linux":
        # bound to the thread that started this process: the worker's event loop
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO, encoding="ascii")
    if os.getppid() != parent:
        os._exit(1)  # it ended before this could be arranged


if __name__ == "__main__":
    main()

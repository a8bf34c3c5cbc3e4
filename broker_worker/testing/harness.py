"""What users test their handlers with: the real worker on memory ports, in virtual time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar, Unpack
from uuid import UUID, uuid4

from pydantic import ValidationError

from broker_worker.context import AnyHandler
from broker_worker.dead_letter import DeadLetter
from broker_worker.message import TaskId, from_record
from broker_worker.registry import Registry
from broker_worker.settings import Settings
from broker_worker.step import step_of_cancel, step_of_replay
from broker_worker.task import TERMINAL, TaskState
from broker_worker.testing.clock import VirtualLoop
from broker_worker.testing.errors import HarnessError
from broker_worker.testing.publishing import PublishOptions, find_handler, write_body, write_properties
from broker_worker.testing.transactions import NO_FACTORY, SessionFactory
from broker_worker.testing.views import LetterView, SentView, TaskView, view_letter, view_sent, view_task
from broker_worker.testing.worker import HarnessWorker

T = TypeVar("T")
LONGEST_DRAIN = timedelta(days=30)  # of virtual time
LONGEST_WAIT = 60.0  # seconds of real time, for threads and sockets
SHOWN_LEFT = 20  # lines of what is left to do


class Harness:
    """A worker with its broker, its database and its clock, all in memory.

    An async context manager, on a `VirtualLoop`: within the pytest fixture `harness`, or a
    function behind `in_virtual_time`. It starts with the first thing it is asked to do.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        queues: Mapping[str, int] | Collection[str] = ("default",),
        session_factory: SessionFactory | None = None,
        seed: int = 0,
        **settings: object,
    ) -> None:
        """Prepare; `settings` are those of the worker by their names, as values or as text.

        Args:
            registry: the handlers.
            queues: their names, and how many tasks of each run at a time (16 if not given).
            session_factory: makes sessions for handlers that take an `AsyncSession`.
            seed: for the jitter of retries, so that their waits are the same in each run.
            settings: `max_attempts=3`, `retry_delay="1s"`, `unknown_task_grace=timedelta(0)`…
        """
        self._registry = registry
        self._settings = _read_settings(queues, settings)
        self._session_factory = session_factory
        self._seed = seed
        self._fakes: dict[type, object] = {}
        self._replayed: set[UUID] = set()
        self._worker: HarnessWorker | None = None
        self._is_started = False

    async def __aenter__(self) -> Self:
        if not isinstance(asyncio.get_running_loop(), VirtualLoop):
            raise HarnessError(
                "the harness needs virtual time: use the pytest fixture `harness`, or put "
                "broker_worker.testing.in_virtual_time around the test"
            )
        self._worker = HarnessWorker(
            self._registry,
            self._settings,
            fakes=self._fakes,
            session_factory=self._session_factory,
            seed=self._seed,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_started:
            await self._open.stop()
        self._worker = None

    # --- before it starts ----------------------------------------------------------------

    def override(self, kind: type[T], fake: T) -> None:
        """Let `fake` stand for a resource, which is then not opened; before anything is published."""
        if self._is_started:
            raise HarnessError("the resources are open already: override them before the first publish")
        if kind not in self._registry.resources:
            raise HarnessError(f"no resource of type {kind.__name__} is registered")
        self._fakes[kind] = fake

    # --- what a test does ----------------------------------------------------------------

    async def publish(
        self, task: AnyHandler | str, payload: object = None, **options: Unpack[PublishOptions]
    ) -> str:
        """Publish a task, a handler or a name, as any program does; its id. Nothing runs before `drain`.

        With a handler, the payload has to be one that it takes; with a name it is sent
        whatever it is, as by a program in another language.

        Options:
            id: the task's id, a fresh one if not given; the same id again is no new task.
            queue: else the first.
            delay: run it not before; seconds or timedelta from now on.
            not_after: run it not after; a datetime, or seconds or timedelta from now on.
            headers: headers of your own.
            correlation_id: is kept with the task.
            reply_to: the queue for the outcome; the setting `reply_to` has to allow it.
            content_type: of a payload that is bytes, for a decoder of yours.
            times: publish the same message so many times.

        Raises:
            PayloadError: the payload can't become JSON, or is not what the handler takes.
            ConfigurationError: the handler is not of the registry.
            PublishError: the harness has no such queue.
            HarnessError: the handler needs a session_factory.
        """
        name, handler = find_handler(self._registry, task)
        if handler is not None and handler.session_parameter is not None and self._session_factory is None:
            raise HarnessError(NO_FACTORY.format(name=name))
        checking = None if isinstance(task, str) else handler
        body = write_body(payload, options.get("content_type"), checking)
        await self._start()
        task_id = options.get("id") or uuid4().hex
        properties = write_properties(name, task_id, self.now, options)
        queue = options.get("queue") or next(iter(self._settings.queues))
        for _ in range(options.get("times", 1)):
            self._open.broker.send(queue, properties, body)
        return task_id

    async def drain(self, *, longest: timedelta = LONGEST_DRAIN, longest_wait: float = LONGEST_WAIT) -> None:
        """Let everything happen: until nothing is ready, running, delayed or owed. Virtual time passes.

        Raises:
            HarnessError: it takes longer than `longest` (virtual), or `longest_wait` (real seconds),
                or will never end; it says what is left. Or the worker itself failed.
        """
        await self._start()
        await self._pass_until(lambda: self._open.is_idle, "drain", longest, longest_wait)

    async def until(self, condition: Callable[[], object], *, longest: timedelta = LONGEST_DRAIN) -> None:
        """Let virtual time pass until `condition` is true, asked whenever all wait; raises as `drain`."""
        await self._start()
        await self._pass_until(condition, "until", longest, LONGEST_WAIT)

    async def advance(
        self, by: timedelta = timedelta(0), *, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Let so much virtual time pass, with everything that is due in it. Raises as `drain`."""
        await self._start()
        end = self.now + by + timedelta(hours=hours, minutes=minutes, seconds=seconds)
        asyncio.get_running_loop().call_later((end - self.now).total_seconds(), lambda: None)
        await self._pass_until(lambda: self.now >= end, "advance", LONGEST_DRAIN * 1000, LONGEST_WAIT)

    async def cancel(self, id: str, *, name: str | None = None, queue: str | None = None) -> None:  # noqa: A002
        """Cancel a task as an operator does: at once where it waits; where it runs, it is asked to end."""
        task = self._open.database.tasks[self._find(id, name, queue)].task
        if task.state in TERMINAL:
            raise HarnessError(f"the task {id} is {task.state} already")
        self._open.owe(self._open.database.apply(step_of_cancel(task), worker=self._open.id))
        if task.state is TaskState.RUNNING:
            self._open.runs.cancel(task.key, task.epoch)
        await self._loop.rest()

    async def replay(self, id: str, *, name: str | None = None, queue: str | None = None) -> None:  # noqa: A002
        """Send a dead task on its way again from its dead letter, as an operator does."""
        row = self._open.database.tasks[self._find(id, name, queue)]
        letters = [each for each in self._letters() if each.task_key == row.task.key]
        if row.task.state is not TaskState.DEAD or not letters:
            raise HarnessError(f"the task {id} is {row.task.state}: only a dead one can be replayed")
        letter = letters[-1]
        message = from_record(row.task.id, letter.body, letter.record, epoch=letter.epoch)
        self._replayed.add(letter.id)
        self._open.owe(self._open.database.apply(step_of_replay(row.task, message), worker=self._open.id))

    # --- what a test sees ----------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The virtual time of day, UTC."""
        return self._open.clock.now()

    def task(self, id: str, *, name: str | None = None, queue: str | None = None) -> TaskView:  # noqa: A002
        """Look at a task; `name` and `queue` tell tasks with the same id apart.

        Raises:
            HarnessError: there is none yet, or there are several.
        """
        return view_task(self._find(id, name, queue), self._open.database, self._open.moments)

    def tasks(
        self, *, name: str | None = None, queue: str | None = None, state: TaskState | str | None = None
    ) -> list[TaskView]:
        """Look at all tasks of a name, in a queue, in a state; in the order in which they arrived."""
        ids = [id_ for id_ in self._open.database.tasks if _fits(id_, name, queue)]
        views = [view_task(id_, self._open.database, self._open.moments) for id_ in ids]
        return [view for view in views if state is None or view.state == state]

    @property
    def dead_letters(self) -> list[LetterView]:
        """All dead letters that were not replayed."""
        return [view_letter(each) for each in self._letters()]

    @property
    def replies(self) -> list[SentView]:
        """What was sent to the publishers' `reply_to`."""
        return [view_sent(each) for each in self._open.broker.replies]

    @property
    def events(self) -> list[SentView]:
        """What handlers sent to exchanges."""
        return [view_sent(each) for each in self._open.broker.events]

    def assert_succeeded(self, *ids: str) -> None:
        """Fail with the handler's error unless these tasks have succeeded; without ids, all tasks."""
        views = [self.task(id_) for id_ in ids] if ids else self.tasks()
        for view in views:
            if view.state is not TaskState.SUCCEEDED:
                reason = f", {view.reason}" if view.reason else ""
                told = f"the task {view.name} {view.id} is {view.state}{reason}, at attempt {view.attempt}"
                trace = (
                    f"\n{view.traceback or f'{view.error_type}: {view.error_message}'}"
                    if view.failure
                    else ""
                )
                raise AssertionError(told + trace)

    # --- inside --------------------------------------------------------------------------

    @property
    def _open(self) -> HarnessWorker:
        if self._worker is None:
            raise HarnessError("the harness is not open: `async with Harness(…) as harness`")
        return self._worker

    @property
    def _loop(self) -> VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)  # noqa: S101 - seen to at the entry
        return loop

    def _letters(self) -> list[DeadLetter]:
        return [each for each in self._open.database.letters.values() if each.id not in self._replayed]

    def _find(self, id_: str, name: str | None, queue: str | None) -> TaskId:
        found = [each for each in self._open.database.tasks if each.id == id_ and _fits(each, name, queue)]
        if not found:
            raise HarnessError(f"no worker has received a task {id_!r}: published? `await harness.drain()`?")
        if len(found) > 1:
            several = ", ".join(f"queue {each.queue} name {each.name}" for each in found)
            raise HarnessError(f"several tasks are {id_!r}: say which by name and queue; there are {several}")
        return found[0]

    async def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            await self._open.start()

    async def _pass_until(
        self, condition: Callable[[], object], what: str, longest: timedelta, longest_wait: float
    ) -> None:
        loop, worker = self._loop, self._open
        deadline = loop.time() + longest.total_seconds()
        with loop.jumping_when(lambda: not worker.runs):
            try:
                async with _real_time_limit(longest_wait):
                    while True:
                        pause = await loop.rest()
                        if worker.fault is not None:
                            raise worker.fault
                        if condition():
                            return
                        if pause is None or loop.time() + pause > deadline:
                            raise HarnessError(self._stuck(what, longest if pause is not None else None))
                        await asyncio.sleep(pause)
            except TimeoutError as error:
                raise HarnessError(self._stuck(what, f"{longest_wait:g} s of real time")) from error

    def _stuck(self, what: str, limit: object) -> str:
        why = f"is not done after {limit}" if limit is not None else "would wait for ever"
        left = list(self._open.left())
        lines = [
            *left[:SHOWN_LEFT],
            *([f"and {len(left) - SHOWN_LEFT} more"] if len(left) > SHOWN_LEFT else []),
        ]
        return "\n  ".join([f"{what} {why}; it is {self.now:%Y-%m-%d %H:%M:%S}, and left to do is", *lines])


@asynccontextmanager
async def _real_time_limit(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """Raise `TimeoutError` inside when it takes longer, by the clock on the wall."""
    loop = asyncio.get_running_loop()
    is_over = False

    def expire() -> None:
        if not is_over:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer = threading.Timer(seconds, loop.call_soon_threadsafe, [expire])
        timer.start()
        try:
            yield limit
        finally:
            is_over = True
            timer.cancel()
            timer.join()


def _fits(id_: TaskId, name: str | None, queue: str | None) -> bool:
    return name in {None, id_.name} and queue in {None, id_.queue}


def _read_settings(queues: Mapping[str, int] | Collection[str], values: Mapping[str, object]) -> Settings:
    if isinstance(queues, str):
        queues = (queues,)
    default = 16
    concurrency = queues if isinstance(queues, Mapping) else dict.fromkeys(queues, default)
    try:
        return Settings(queues=concurrency, **values)  # type: ignore[arg-type]  # pydantic reads them
    except ValidationError as error:
        problems = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors() if each["loc"])
        raise HarnessError(f"these are no settings: {problems or error}") from None

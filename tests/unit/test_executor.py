from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from broker_worker.clock import SystemClock
from broker_worker.context import Completion, Context, SyncContext, current_task
from broker_worker.handler import Handler, Limits
from broker_worker.message import Message, TaskId
from broker_worker.outcome import Dead, GiveUp, Outcome, Postponed, Reason, Retry, Succeeded
from broker_worker.ports import Clock, TaskStore
from broker_worker.registry import Registry
from broker_worker.retry import LONGEST_DELAY, AttemptTimeoutError, RetryPolicy, follow_up
from broker_worker.step import Claim
from broker_worker.task import Task, TaskState
from broker_worker.worker.executor import Executor
from broker_worker.worker.hands import Tools
from broker_worker.worker.resources import Resources
from broker_worker.worker.stop import Stop

POLICY = RetryPolicy(3, timedelta(seconds=10), timedelta(minutes=1))


LIMITS = Limits(POLICY, timedelta(seconds=30))


@dataclass
class Store:
    """What an executor asks of the inbox; and the checkpoints, progress and completions of its attempts."""

    completes: bool = False
    saved: list[str] = field(default_factory=list)
    progress: list[tuple[float, str]] = field(default_factory=list)

    async def is_completed(self, _: Claim) -> bool:
        return self.completes

    async def save(self, _: Claim, state: str) -> None:
        self.saved.append(state)

    def report(self, _: Claim, fraction: float, note: str) -> None:
        self.progress.append((fraction, note))


class Bench:
    """An executor, and what its attempts leave."""

    def __init__(
        self,
        registry: Registry | None = None,
        *,
        clock: Clock | None = None,
        **ports: Any,  # noqa: ANN401 - ports of the executor
    ) -> None:
        self.store = Store()
        self.left: list[asyncio.Task[Outcome]] = []
        self.registry = registry or Registry()
        self.resources = Resources(self.registry)
        tools = Tools(
            registry=self.registry,
            checkpoints=self.store,
            progress=self.store,
            completion=lambda claim, result: Completion("SELECT", (claim.key, result)),
            max_result_bytes=100,
        )
        self.executor = Executor(
            limits=LIMITS,
            threads=2,
            tools=tools,
            resources=self.resources,
            tasks=cast("TaskStore", self.store),
            clock=clock or SystemClock(),
            random=lambda: 0.5,
            **ports,
        )

    async def execute(
        self,
        handler: Handler,
        arguments: dict[str, object] | None = None,
        attempt: int = 1,
        *,
        stop: Stop | None = None,
        claim: Claim | None = None,
    ) -> Outcome:
        return await self.executor.execute(
            handler,
            arguments or {},
            claim or claim_of(attempt),
            stop=stop or Stop(),
            leave=self.left.append,
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.executor.close()


def claim_of(attempt: int = 1, *, saved: str | None = None) -> Claim:
    task = TaskId("email", "email.send", "m-1")
    row = Task(1, task, TaskState.RUNNING, attempt, POLICY.max_attempts, attempt, uuid4(), b"")
    return Claim(row, Message(task, b"{}"), may_be_repeat=attempt > 1, saved=saved)


def context(attempt: int = 1) -> Context:
    until = datetime.now(UTC) + timedelta(seconds=30)
    return Context(claim_of(attempt).message, attempt, POLICY.max_attempts, attempt > 1, until)


def handler_of(function: Callable[..., object], *, timeout: timedelta | None = None) -> Handler:
    registry = Registry()
    registry.task("email.send", timeout=timeout)(function)
    return registry.handlers[0]


def raising(error: BaseException, *, in_thread: bool) -> Handler:
    async def on_loop() -> None:
        raise error

    def threaded() -> None:
        raise error

    return handler_of(threaded if in_thread else on_loop)


async def forever() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_a_coroutine_handlers_return_value_is_the_result(bench: Bench) -> None:
    async def double(number: int) -> int:
        return number * 2

    assert await bench.execute(handler_of(double), {"number": 2}) == Succeeded("4")


async def test_a_plain_handler_runs_in_a_thread(bench: Bench) -> None:
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await bench.execute(handler_of(where), {}) == Succeeded("false")


async def test_a_coroutine_function_behind_a_plain_decorator_is_awaited(bench: Bench) -> None:
    async def inner() -> int:
        return 1

    @functools.wraps(inner)
    def wrapper() -> Awaitable[int]:
        return inner()

    assert await bench.execute(handler_of(wrapper), {}) == Succeeded("1")


async def test_a_handler_gets_the_context_by_its_annotation(bench: Bench) -> None:
    def attempt_of(here: SyncContext, number: int) -> list[int]:
        return [here.attempt, number]

    assert await bench.execute(handler_of(attempt_of), {"number": 7}, 2) == Succeeded("[2,7]")


@pytest.mark.parametrize("in_thread", [False, True])
async def test_the_current_task_is_known_inside_a_handler_and_not_after(
    bench: Bench, *, in_thread: bool
) -> None:
    async def on_loop() -> int:
        return threaded()

    def threaded() -> int:
        here = current_task.get()
        return here.attempt if here else 0

    outcome = await bench.execute(handler_of(threaded if in_thread else on_loop), {}, 2)

    assert outcome == Succeeded("2")
    assert current_task.get() is None


def test_a_contexts_log_lines_carry_its_fields_and_those_of_the_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context(2).log.warning("hello", extra={"more": 1})

    fields = vars(caplog.records[0])
    assert (fields["task"], fields["task_id"], fields["queue"], fields["attempt"], fields["more"]) == (
        "email.send",
        "m-1",
        "email",
        2,
        1,
    )
    assert not set(context().log_fields()) & set(vars(logging.makeLogRecord({})))


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        TimeoutError(),
        asyncio.CancelledError(),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(),
        StopAsyncIteration(),
        ExceptionGroup("several", [ValueError(), OSError()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_is_a_failed_attempt(
    bench: Bench, error: BaseException, *, in_thread: bool
) -> None:
    handler = raising(error, in_thread=in_thread)

    outcome = await bench.execute(handler, {})
    last = await bench.execute(handler, {}, 3)

    assert isinstance(outcome, Postponed)
    assert (outcome.delay, outcome.reason) == (timedelta(seconds=7.5), None)
    assert isinstance(last, Dead)
    assert last.reason is Reason.ATTEMPTS_EXHAUSTED


async def test_an_attempt_that_runs_too_long_times_out(bench: Bench) -> None:
    handler = handler_of(forever, timeout=timedelta(milliseconds=10))

    outcome = await bench.execute(handler, {})
    last = await bench.execute(handler, {}, 3)

    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT
    assert outcome.failure.message == "the attempt took longer than 0.01 s"
    assert "in forever" in (outcome.failure.traceback or "")
    assert isinstance(last, Dead)
    assert last.reason is Reason.TIMEOUT


async def test_a_thread_that_runs_too_long_times_out_and_runs_on(bench: Bench) -> None:
    released = threading.Event()
    ended = threading.Event()

    def wait() -> None:
        released.wait()
        ended.set()

    outcome = await bench.execute(handler_of(wait, timeout=timedelta(milliseconds=10)), {})
    was_running = not ended.is_set()
    released.set()

    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT
    assert was_running
    assert await asyncio.to_thread(ended.wait, 30)


async def test_a_handler_that_answers_its_timeout_by_returning_has_succeeded(bench: Bench) -> None:
    async def finish() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            return "partial"

    handler = handler_of(finish, timeout=timedelta(milliseconds=10))

    assert await bench.execute(handler, {}) == Succeeded('"partial"')


async def execute_and_cancel(bench: Bench, handler: Handler, started: asyncio.Event) -> Outcome:
    async with asyncio.TaskGroup() as group:
        attempt = group.create_task(bench.execute(handler, {}))
        await started.wait()
        attempt.cancel()
    return attempt.result()


async def test_a_cancellation_from_outside_is_passed_on(bench: Bench) -> None:
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await forever()

    with pytest.raises(asyncio.CancelledError):
        await execute_and_cancel(bench, handler_of(wait), started)


async def test_a_handler_that_finishes_in_spite_of_a_cancellation_has_its_outcome(bench: Bench) -> None:
    started = asyncio.Event()

    async def finish() -> str:
        try:
            started.set()
            await forever()
        except asyncio.CancelledError:
            return "done"

    assert await execute_and_cancel(bench, handler_of(finish), started) == Succeeded('"done"')


async def test_a_second_attempt_after_a_swallowed_cancellation_is_judged_by_its_own(
    bench: Bench,
) -> None:
    started = asyncio.Event()

    async def swallow() -> None:
        try:
            started.set()
            await forever()
        except asyncio.CancelledError:
            return

    async def both() -> Outcome:
        await bench.execute(handler_of(swallow), {})
        return await bench.execute(raising(asyncio.CancelledError(), in_thread=False), {})

    async with asyncio.TaskGroup() as group:
        attempts = group.create_task(both())
        await started.wait()
        attempts.cancel()

    assert isinstance(attempts.result(), Postponed)


@pytest.mark.parametrize(
    ("result", "reason"),
    [("x" * 100, Reason.RESULT_TOO_LARGE), (object(), Reason.RESULT_UNSERIALISABLE)],
    ids=["large", "opaque"],
)
async def test_a_result_that_can_not_be_kept_is_dead_at_once(
    bench: Bench, result: object, reason: Reason
) -> None:
    async def give() -> object:
        return result

    outcome = await bench.execute(handler_of(give), {})

    assert isinstance(outcome, Dead)
    assert outcome.reason is reason


async def test_a_validation_error_inside_a_handler_shows_no_values(bench: Bench) -> None:
    class Answer(BaseModel):
        age: int

    def ask(given: str) -> None:
        Answer.model_validate({"age": given})

    outcome = await bench.execute(handler_of(ask), {"given": "hunter2"})

    assert isinstance(outcome, Postponed)
    assert outcome.failure.message == "age: int_parsing"
    assert "hunter2" not in (outcome.failure.traceback or "")


def follow(error: BaseException, *, attempt: int = 1, jitter: float = 0.5) -> Postponed | Dead:
    return follow_up(error, attempt=attempt, policy=POLICY, jitter=jitter)


def test_a_retry_with_a_delay_waits_exactly_that_long() -> None:
    outcome = follow(Retry("later", delay=123), jitter=0.9)

    assert isinstance(outcome, Postponed)
    assert outcome.delay == timedelta(seconds=123)


def test_a_retry_without_a_delay_follows_the_policy() -> None:
    outcome = follow(Retry())

    assert isinstance(outcome, Postponed)
    assert outcome.delay == POLICY.backoff(1, jitter=0.5)


def test_a_retry_past_all_dates_waits_ten_years() -> None:
    outcome = follow(Retry(delay=timedelta.max))

    assert isinstance(outcome, Postponed)
    assert outcome.delay == LONGEST_DELAY


def test_a_retry_after_the_last_attempt_is_exhausted() -> None:
    outcome = follow(Retry(delay=1), attempt=3)

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.ATTEMPTS_EXHAUSTED


@pytest.mark.parametrize("attempt", [1, 3])
def test_giving_up_ends_the_task_at_any_attempt(attempt: int) -> None:
    outcome = follow(GiveUp("no such user"), attempt=attempt)

    assert isinstance(outcome, Dead)
    assert (outcome.reason, outcome.failure.message) == (Reason.GAVE_UP, "no such user")


def test_giving_up_inside_a_task_group_counts() -> None:
    outcome = follow(ExceptionGroup("group", [ExceptionGroup("inner", [GiveUp("no")])]))

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.GAVE_UP


def test_giving_up_beside_another_error_does_not_count() -> None:
    assert isinstance(follow(ExceptionGroup("group", [GiveUp("no"), ValueError()])), Postponed)


errors = st.sampled_from(
    [
        ValueError(),
        Retry(),
        Retry(delay=5),
        AttemptTimeoutError(timedelta(seconds=1)),
        ExceptionGroup("", [OSError()]),
    ]
)


@given(errors, st.integers(1, 2000), st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_another_attempt_follows_exactly_while_the_policy_allows_one(
    error: BaseException, attempt: int, max_attempts: int, jitter: float
) -> None:
    policy = RetryPolicy(max_attempts, timedelta(seconds=10), timedelta(minutes=1))

    outcome = follow_up(error, attempt=attempt, policy=policy, jitter=jitter)

    assert isinstance(outcome, Postponed) == (attempt < max_attempts)
    if isinstance(outcome, Postponed):
        assert timedelta(0) <= outcome.delay <= policy.max_delay


# --- what is left behind ----------------------------------------------------------------


async def succeeds() -> str:
    return "done"


async def waits() -> None:
    await asyncio.sleep(0)


async def fails() -> None:
    raise ValueError("no")


@pytest.mark.parametrize("function", [succeeds, waits, fails])
async def test_an_attempt_leaves_nothing_that_only_the_cycle_collector_frees(
    bench: Bench, function: Callable[[], Awaitable[object]]
) -> None:
    handler = handler_of(function)
    await bench.execute(handler)
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            await bench.execute(handler)
        left = gc.collect()
    finally:
        gc.enable()

    assert left < 50

"""How an attempt is ended from outside, and what is left of one that can't be: in virtual time."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest

from broker_worker.context import BaseContext, Context, SyncContext
from broker_worker.handler import Handler
from broker_worker.middleware import CallNext, ErrorReport, report_errors
from broker_worker.outcome import Cancelled, Dead, GiveUp, Outcome, Postponed, Reason, Succeeded
from broker_worker.registry import Registry
from broker_worker.testing.clock import BEGINNING, VirtualClock, in_virtual_time
from broker_worker.worker.executor import HARD_AFTER
from broker_worker.worker.slots import Slots
from broker_worker.worker.stop import Stop, StopReason
from tests.unit.test_executor import Bench, claim_of, forever, handler_of

TIMEOUT = timedelta(seconds=30)


def bench(registry: Registry | None = None) -> Bench:
    return Bench(registry, clock=VirtualClock())


async def swallow(ends: asyncio.Event) -> None:
    while not ends.is_set():
        try:
            await ends.wait()
        except asyncio.CancelledError:
            continue


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_a_handler_that_swallows_its_cancellation_is_left_behind_five_seconds_after_its_timeout() -> (
    None
):
    here, ends = bench(), asyncio.Event()

    async def stubborn() -> None:
        await swallow(ends)

    outcome = await here.execute(handler_of(stubborn))

    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT
    assert now() == pytest.approx((TIMEOUT + HARD_AFTER).total_seconds())
    assert len(here.left) == 1
    assert here.executor.has_left_runs
    ends.set()
    await asyncio.wait(here.left)
    await asyncio.sleep(0)
    assert not here.executor.has_left_runs


async def test_a_thread_that_asks_its_context_ends_at_its_timeout_and_keeps_its_slot() -> None:
    here = Bench()

    def cooperative(context: SyncContext) -> None:
        while True:
            context.raise_if_cancelled()

    outcome = await here.execute(handler_of(cooperative, timeout=timedelta(milliseconds=10)))

    here.executor.close()
    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT
    assert here.left == []


@in_virtual_time
async def test_a_slot_is_written_off_with_a_run_that_can_not_be_ended_and_regained_at_its_end() -> None:
    here, ends, slots = bench(), asyncio.Event(), Slots(1)

    async def stubborn() -> None:
        await swallow(ends)

    with slots.slot() as slot:
        await here.executor.execute(handler_of(stubborn), {}, claim_of(), stop=Stop(), leave=slot.write_off)
    is_free = slots.take_free()
    ends.set()

    assert not is_free
    assert slots.lost == 1
    await slots.take()
    assert slots.lost == 0


@pytest.mark.parametrize(("limit", "bearable"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
async def test_half_of_the_slots_lost_are_too_many(limit: int, bearable: int) -> None:
    said: list[str] = []
    slots = Slots(limit, on_lost=lambda: said.append("lost"))
    run = asyncio.get_running_loop().create_task(asyncio.Event().wait())

    for _ in range(bearable):
        slots.lose(run)
    was_said = list(said)
    slots.lose(run)

    run.cancel()
    assert was_said == []
    assert said == ["lost"]


async def test_a_handler_that_cancels_itself_in_its_last_step_has_failed() -> None:
    here = Bench()

    async def cancel_myself() -> None:
        cast("asyncio.Task[None]", asyncio.current_task()).cancel()

    outcome = await here.execute(handler_of(cancel_myself))

    assert isinstance(outcome, Postponed)
    assert outcome.failure.error_type == "CancelledError"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_an_attempt_that_is_cancelled_before_its_start_does_not_start(*, in_thread: bool) -> None:
    here, stop, calls = Bench(), Stop(), list[str]()
    stop.ask(StopReason.CANCELLED)

    async def on_loop() -> None:
        calls.append("loop")

    def threaded() -> None:
        calls.append("thread")

    outcome = await here.execute(handler_of(threaded if in_thread else on_loop), stop=stop)

    here.executor.close()
    assert outcome == Cancelled()
    assert calls == []


@in_virtual_time
async def test_an_operators_cancel_ends_a_coroutine_as_cancelled_at_once() -> None:
    here, stop = bench(), Stop()
    asyncio.get_running_loop().call_later(3, stop.ask, StopReason.CANCELLED)

    outcome = await here.execute(handler_of(forever), stop=stop)

    assert outcome == Cancelled()
    assert now() == pytest.approx(3)


async def test_an_operators_cancel_ends_a_thread_that_asks_as_cancelled() -> None:
    here, stop, loop = Bench(), Stop(), asyncio.get_running_loop()

    def wait(context: SyncContext) -> None:
        loop.call_soon_threadsafe(stop.ask, StopReason.CANCELLED)
        while True:
            context.raise_if_cancelled()

    outcome = await here.execute(handler_of(wait), stop=stop)

    here.executor.close()
    assert outcome == Cancelled()


async def test_a_thread_that_returns_in_spite_of_the_cancel_has_succeeded() -> None:
    here, stop, loop = Bench(), Stop(), asyncio.get_running_loop()
    asked = threading.Event()

    def finish() -> str:
        loop.call_soon_threadsafe(stop.ask, StopReason.CANCELLED)
        loop.call_soon_threadsafe(asked.set)
        asked.wait(10)
        return "done"

    outcome = await here.execute(handler_of(finish), stop=stop)

    here.executor.close()
    assert outcome == Succeeded('"done"')


@in_virtual_time
async def test_a_swallowed_cancel_is_cancelled_at_the_hard_limit() -> None:
    here, stop, ends = bench(), Stop(), asyncio.Event()
    asyncio.get_running_loop().call_later(3, stop.ask, StopReason.CANCELLED)

    async def stubborn() -> None:
        await swallow(ends)

    outcome = await here.execute(handler_of(stubborn), stop=stop)
    ends.set()

    assert outcome == Cancelled()
    assert len(here.left) == 1


# --- errors in answer to being asked to end ----------------------------------------------


async def fail_in_cleanup() -> None:
    try:
        await forever()
    finally:
        raise ConnectionError("the rollback's")


async def give_up_in_cleanup() -> None:
    try:
        await forever()
    finally:
        raise GiveUp("too late to go on")


async def give_up_in_cleanup_of_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(give_up_in_cleanup())


async def executed_until_the_workers_end(here: Bench, handler: Handler, attempt: int = 1) -> Outcome:
    executing = asyncio.get_running_loop().create_task(here.execute(handler, attempt=attempt))
    asyncio.get_running_loop().call_later(10, executing.cancel)
    return await executing


@pytest.mark.parametrize("attempt", [1, 3])
@in_virtual_time
async def test_an_error_in_answer_to_the_workers_end_is_not_charged(attempt: int) -> None:
    registry = Registry()
    registry.task("it", give_up_on=(ConnectionError,))(fail_in_cleanup)

    with pytest.raises(asyncio.CancelledError):
        await executed_until_the_workers_end(bench(), registry.handlers[0], attempt)

    assert now() == pytest.approx(10)


@in_virtual_time
async def test_a_hooks_error_in_answer_to_the_workers_end_is_not_charged() -> None:
    registry = Registry()

    @registry.middleware
    async def hook(_: BaseContext, call_next: CallNext) -> Outcome:
        try:
            return await call_next()
        finally:
            raise ConnectionError("a hook's")

    registry.task("it")(forever)

    with pytest.raises(asyncio.CancelledError):
        await executed_until_the_workers_end(bench(registry), registry.handlers[0])


async def test_an_error_of_a_thread_after_the_workers_end_was_asked_is_not_charged() -> None:
    here, loop, executing = Bench(), asyncio.get_running_loop(), list[asyncio.Task[Outcome]]()

    def fail_when_asked(context: SyncContext) -> None:
        loop.call_soon_threadsafe(executing[0].cancel)
        while not context.is_cancelled:
            pass
        raise ConnectionError("interrupted")

    executing.append(loop.create_task(here.execute(handler_of(fail_when_asked))))

    with pytest.raises(asyncio.CancelledError):
        await executing[0]
    here.executor.close()


@in_virtual_time
async def test_an_error_in_answer_to_the_timeout_is_a_timeout_that_shows_it() -> None:
    registry = Registry()
    registry.task("it", give_up_on=(ConnectionError,))(fail_in_cleanup)

    outcome = await bench().execute(registry.handlers[0])
    last = await bench().execute(registry.handlers[0], attempt=3)

    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT
    assert "the rollback's" in (outcome.failure.traceback or "")
    assert isinstance(last, Dead)
    assert last.reason is Reason.TIMEOUT


@in_virtual_time
async def test_an_error_in_answer_to_an_operators_cancel_is_cancelled() -> None:
    here, stop = bench(), Stop()
    asyncio.get_running_loop().call_later(3, stop.ask, StopReason.CANCELLED)

    assert await here.execute(handler_of(fail_in_cleanup), stop=stop) == Cancelled()


@pytest.mark.parametrize("function", [give_up_in_cleanup, give_up_in_cleanup_of_a_group])
@in_virtual_time
async def test_a_handler_that_is_asked_to_end_may_still_say_itself_what_follows(function: object) -> None:
    handler = handler_of(function)  # type: ignore[arg-type]  # one of the two above

    at_end = await executed_until_the_workers_end(bench(), handler)
    at_timeout = await bench().execute(handler)

    for outcome in (at_end, at_timeout):
        assert isinstance(outcome, Dead)
        assert outcome.reason is Reason.GAVE_UP


# --- deadline ------------------------------------------------------------------------


@in_virtual_time
async def test_the_deadline_limits_a_running_attempt_and_no_retry_follows_it() -> None:
    here, seen = bench(), list[float]()

    async def wait(context: Context) -> None:
        seen.append((context.deadline - BEGINNING).total_seconds())
        await forever()

    claim = claim_of()
    claim = replace(claim, time_left=timedelta(seconds=12))
    outcome = await here.execute(handler_of(wait), claim=claim)

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.TIMEOUT
    assert seen == [12]
    assert now() == pytest.approx(12)


@in_virtual_time
async def test_the_time_left_is_counted_from_the_end_of_an_attempt() -> None:
    here = bench()

    async def fail() -> None:
        await asyncio.sleep(15)
        raise ValueError

    claim = claim_of()
    claim = replace(claim, time_left=timedelta(seconds=20))
    outcome = await here.execute(handler_of(fail), claim=claim)  # the next could begin 7.5 s later

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.TIMEOUT


# --- middleware ----------------------------------------------------------------------


def watched(outcomes: list[Outcome]) -> Registry:
    registry = Registry()

    @registry.middleware
    async def watch(_: BaseContext, call_next: CallNext) -> Outcome:
        outcomes.append(await call_next())
        return outcomes[-1]

    return registry


@in_virtual_time
async def test_a_hook_sees_a_timeout_and_a_cancel_as_outcomes() -> None:
    seen: list[Outcome] = []
    registry = watched(seen)
    registry.task("it")(forever)
    here, stop = bench(registry), Stop()

    await here.execute(registry.handlers[0])
    asyncio.get_running_loop().call_later(1, stop.ask, StopReason.CANCELLED)
    await here.execute(registry.handlers[0], stop=stop)

    assert isinstance(seen[0], Postponed)
    assert seen[0].reason is Reason.TIMEOUT
    assert seen[1] == Cancelled()


async def test_hooks_are_called_from_the_first_to_the_last_and_may_replace_the_outcome() -> None:
    registry, order = Registry(), list[str]()

    @registry.middleware
    async def outer(context: BaseContext, call_next: CallNext) -> Outcome:
        order.append(f"outer {context.task_id}")
        await call_next()
        return Succeeded('"replaced"')

    @registry.middleware
    async def inner(_: BaseContext, call_next: CallNext) -> Outcome:
        order.append("inner")
        return await call_next()

    @registry.task("it")
    async def it() -> None:
        order.append("handler")

    outcome = await Bench(registry).execute(registry.handlers[0])

    assert outcome == Succeeded('"replaced"')
    assert order == ["outer m-1", "inner", "handler"]


async def test_a_hooks_error_or_lack_of_an_outcome_fails_the_attempt() -> None:
    for wrong in (True, False):
        registry = Registry()

        async def hook(_: BaseContext, call_next: CallNext, *, wrong: bool = wrong) -> Outcome:
            await call_next()
            if wrong:
                raise KeyError("a hook's")
            return cast("Outcome", None)

        registry.middleware(hook)
        registry.task("it")(good)

        outcome = await Bench(registry).execute(registry.handlers[0])

        assert isinstance(outcome, Postponed)
        assert outcome.failure.error_type == ("KeyError" if wrong else "TypeError")


async def good() -> str:
    return "good"


def good_in_thread() -> str:
    return "good"


@pytest.mark.parametrize("function", [good, good_in_thread])
@in_virtual_time
async def test_a_hook_that_hangs_is_cancelled_at_the_timeout(function: object) -> None:
    registry = Registry()

    @registry.middleware
    async def hang(_: BaseContext, call_next: CallNext) -> Outcome:
        await call_next()
        return await forever()

    registry.task("it")(function)  # type: ignore[type-var]  # one of the two above
    here = bench(registry)

    outcome = await here.execute(registry.handlers[0])

    here.executor.close()
    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT
    assert here.left == []


async def test_hooks_belong_to_the_tasks_of_their_own_registry() -> None:
    seen: list[Outcome] = []
    inner, outer = watched(seen), Registry()
    inner.task("inner")(good)
    outer.task("outer")(good)
    outer.include(inner)
    here = Bench(outer)

    for handler in outer.handlers:
        await here.execute(handler)

    assert seen == [Succeeded('"good"')]


@pytest.mark.parametrize("way", ["plain", "async", "failing"])
async def test_failed_attempts_are_reported_and_a_report_changes_nothing(way: str) -> None:
    registry, reports = Registry(), list[ErrorReport]()

    async def later(report: ErrorReport) -> None:
        reports.append(report)

    def fail(report: ErrorReport) -> None:
        reports.append(report)
        raise OSError

    registry.middleware(report_errors({"plain": reports.append, "async": later, "failing": fail}[way]))

    @registry.task("it")
    async def it() -> None:
        raise ValueError("no")

    outcome = await Bench(registry).execute(registry.handlers[0])

    assert isinstance(outcome, Postponed)
    (report,) = reports
    assert isinstance(report.error, ValueError)
    assert not report.is_final
    assert report.failure == outcome.failure

"""What an attempt gets before its time begins, and gives back: when it fails, or is long in coming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker import Context, Registry
from broker_worker.context import BaseContext
from broker_worker.errors import ChildCrashedError, ConfigurationError, StoreUnavailableError
from broker_worker.handler import Handler, Limits
from broker_worker.middleware import CallNext
from broker_worker.outcome import Cancelled, Dead, Failure, Outcome, Postponed, Reason, Succeeded
from broker_worker.step import Claim
from broker_worker.testing.clock import VirtualClock, in_virtual_time
from broker_worker.worker.executor import HARD_AFTER
from broker_worker.worker.stop import Stop, StopReason
from tests.unit.test_executor import LIMITS, Bench, claim_of


class Pool:
    pass


@dataclass
class Transaction:
    """One that commits nothing anywhere."""

    session: object = field(default_factory=AsyncSession)
    committed: list[Succeeded] = field(default_factory=list)

    async def save(self, state: str) -> None:
        raise NotImplementedError

    async def commit(self, outcome: Succeeded) -> None:
        self.committed.append(outcome)


@dataclass
class Adapter:
    """Transactions and child processes with faults to order: errors at the entry, one at the exit."""

    entering: Iterator[Exception] = field(default_factory=lambda: iter(()))
    leaving: Exception | None = None
    ends_as: Outcome = field(default_factory=Succeeded)
    lasts: float = 0.0  # seconds
    transaction: Transaction = field(default_factory=Transaction)

    @asynccontextmanager
    async def open(self, _: Claim, *, limit: timedelta) -> AsyncIterator[Transaction]:
        assert limit > timedelta(0)
        for error in self.entering:
            raise error
        yield self.transaction
        if self.leaving is not None:
            raise self.leaving

    @asynccontextmanager
    async def child(self, *, memory_limit: int | None) -> AsyncIterator[Adapter]:
        assert memory_limit is None
        for error in self.entering:
            raise error
        yield self
        if self.leaving is not None:
            raise self.leaving

    async def run(
        self,
        handler: Handler,
        context: BaseContext,
        *,
        limits: Limits,
        jitter: float,
        time_left: timedelta | None,
    ) -> Outcome:
        assert (handler.name, context.name) == ("it", "email.send")
        assert limits.timeout > timedelta(0) <= (time_left or timedelta(0))
        assert jitter < 1
        await asyncio.sleep(self.lasts)
        return self.ends_as


class Scene:
    """An attempt that needs `adapter`, and a hook that looks at its outcome."""

    def __init__(self, adapter: Adapter, *, way: str) -> None:
        self.seen: list[Outcome] = []
        self.calls: list[str] = []
        registry = Registry()

        @registry.middleware
        async def watch(_: BaseContext, call_next: CallNext) -> Outcome:
            self.seen.append(await call_next())
            return self.seen[-1]

        async def transactional(session: AsyncSession) -> str:
            self.calls.append(type(session).__name__)
            return "done"

        def in_child() -> None: ...

        registry.task("it", process=way == "process")(in_child if way == "process" else transactional)
        self.handler = registry.handlers[0]
        ports = {"processes": adapter} if way == "process" else {"transactions": adapter}
        self.bench = Bench(registry, clock=VirtualClock(), **ports)

    async def execute(self, *, stop: Stop | None = None, claim: Claim | None = None) -> Outcome:
        return await self.bench.execute(self.handler, stop=stop, claim=claim)


WAYS = pytest.mark.parametrize("way", ["transaction", "process"])


# --- faults --------------------------------------------------------------------------------


@WAYS
@in_virtual_time
async def test_an_adapters_fault_at_the_entry_is_a_failed_attempt_that_hooks_see(way: str) -> None:
    scene = Scene(Adapter(entering=iter([RuntimeError("a bug")])), way=way)

    outcome = await scene.execute()

    assert isinstance(outcome, Postponed)
    assert outcome.failure.error_type == "RuntimeError"
    assert scene.seen == [outcome]
    assert scene.calls == []


@WAYS
@in_virtual_time
async def test_an_adapters_fault_at_the_exit_does_not_change_the_outcome(way: str) -> None:
    scene = Scene(Adapter(leaving=RuntimeError("a bug")), way=way)

    outcome = await scene.execute()

    assert isinstance(outcome, Succeeded)
    assert scene.seen == [outcome]


@in_virtual_time
async def test_a_child_that_can_not_start_is_a_crash_that_hooks_see() -> None:
    scene = Scene(Adapter(entering=iter([ChildCrashedError("could not start: no memory")])), way="process")

    outcome = await scene.execute()

    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.CRASHED
    assert outcome.failure.message == "could not start: no memory"
    assert scene.seen == [outcome]


async def test_a_resource_that_is_not_open_is_a_failed_attempt() -> None:
    registry = Registry()

    @registry.resource
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()

    @registry.task("it")
    async def it(pool: Pool) -> None: ...

    outcome = await Bench(registry).execute(registry.handlers[0])

    assert isinstance(outcome, Postponed)
    assert outcome.failure.error_type == "KeyError"


@WAYS
@in_virtual_time
async def test_an_adapters_fault_in_answer_to_the_workers_end_is_not_charged(way: str) -> None:
    class Rude(Adapter):
        @asynccontextmanager
        async def open(self, _: Claim, *, limit: timedelta) -> AsyncIterator[Transaction]:
            assert limit > timedelta(0)
            await self._fail_when_cancelled()
            yield self.transaction

        @asynccontextmanager
        async def child(self, *, memory_limit: int | None) -> AsyncIterator[Adapter]:
            assert memory_limit is None
            await self._fail_when_cancelled()
            yield self

        async def _fail_when_cancelled(self) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                raise ConnectionError("closed")

    loop = asyncio.get_running_loop()
    executing = loop.create_task(Scene(Rude(), way=way).execute())
    loop.call_later(10, executing.cancel)

    with pytest.raises(asyncio.CancelledError):
        await executing


# --- waiting for a connection ----------------------------------------------------------------


def unavailable() -> Iterator[Exception]:
    """A database that is away, and by turns one whose address is no good."""
    while True:
        yield StoreUnavailableError("away")
        yield ConfigurationError("no address")


@in_virtual_time
async def test_a_cancel_ends_the_wait_for_a_transactions_connection() -> None:
    scene, stop = Scene(Adapter(entering=unavailable()), way="transaction"), Stop()
    asyncio.get_running_loop().call_later(3600, stop.ask, StopReason.CANCELLED)

    outcome = await scene.execute(stop=stop)

    assert outcome == Cancelled()
    assert asyncio.get_running_loop().time() == pytest.approx(3600)
    assert scene.calls == []


@in_virtual_time
async def test_an_attempt_that_is_asked_again_while_it_leaves_off_its_wait_ends_as_cancelled() -> None:
    class Slow(Adapter):
        @asynccontextmanager
        async def open(self, _: Claim, *, limit: timedelta) -> AsyncIterator[Transaction]:
            assert limit > timedelta(0)
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(10)
            yield self.transaction

    scene, stop, loop = Scene(Slow(), way="transaction"), Stop(), asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    for moment in (3, 8):
        loop.call_later(moment, stop.ask, StopReason.CANCELLED)

    assert await scene.execute(stop=stop) == Cancelled()
    assert complaints == []


@in_virtual_time
async def test_the_wait_for_a_transactions_connection_is_no_part_of_the_attempts_time() -> None:
    scene = Scene(Adapter(entering=iter([StoreUnavailableError("away")] * 100)), way="transaction")

    outcome = await scene.execute()

    assert outcome == Succeeded('"done"')
    assert asyncio.get_running_loop().time() > LIMITS.timeout.total_seconds()


# --- what a child says at its end ------------------------------------------------------------


@in_virtual_time
async def test_a_retry_that_a_child_asks_for_is_judged_by_the_time_that_is_left_at_its_end() -> None:
    ends_as = Postponed(timedelta(seconds=10), Failure("ValueError", "no"))
    scene = Scene(Adapter(ends_as=ends_as, lasts=15), way="process")
    late = replace(claim_of(), time_left=timedelta(seconds=20))

    outcome = await scene.execute(claim=late)

    assert isinstance(outcome, Dead)
    assert (outcome.reason, outcome.failure.message) == (Reason.TIMEOUT, "no")


# --- a transaction of the handler's -----------------------------------------------------------


async def test_a_transactional_handler_can_not_ask_for_its_completion() -> None:
    adapter = Adapter()

    async def both(session: AsyncSession, context: Context) -> None:
        assert session is adapter.transaction.session
        context.completion()

    registry = Registry()
    registry.task("it")(both)

    outcome = await Bench(registry, transactions=adapter).execute(registry.handlers[0])

    assert isinstance(outcome, Postponed)
    assert outcome.failure.message == "the task ends in the transaction of its handler: return the result"
    assert adapter.transaction.committed == []


# --- hooks ------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_hook_that_swallows_its_cancellation_is_left_behind_at_the_hard_limit() -> None:
    registry, ends = Registry(), asyncio.Event()

    @registry.middleware
    async def stubborn(_: BaseContext, call_next: CallNext) -> Outcome:
        outcome = await call_next()
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                continue
        return outcome

    @registry.task("it")
    async def it() -> None: ...

    here = Bench(registry, clock=VirtualClock())
    outcome = await here.execute(registry.handlers[0])
    ends.set()

    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT
    assert asyncio.get_running_loop().time() == pytest.approx((LIMITS.timeout + HARD_AFTER).total_seconds())
    assert len(here.left) == 1

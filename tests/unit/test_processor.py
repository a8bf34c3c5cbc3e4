"""The path of a delivery on memory ports, in virtual time: decode, claim, execute, record, ack."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from broker_worker import Completion, Context, Registry
from broker_worker.errors import StoreDataError, StoreUnavailableError, UnpublishableError
from broker_worker.events import AttemptFinished, AttemptStarted, DeliverySettled, Event
from broker_worker.handler import Limits
from broker_worker.message import Properties, TaskId
from broker_worker.outcome import Outcome, Reason
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.ports import Delivery
from broker_worker.retry import Policy, RetryPolicy
from broker_worker.services.relay import Relay
from broker_worker.settings import Settings
from broker_worker.step import Claim, Met
from broker_worker.task import TERMINAL, Arrival, TaskState
from broker_worker.testing.broker import MemoryBroker
from broker_worker.testing.clock import VirtualClock, in_virtual_time
from broker_worker.testing.memory import MemoryStore
from broker_worker.testing.tables import MemoryDatabase
from broker_worker.worker.executor import Executor
from broker_worker.worker.hands import Tools
from broker_worker.worker.intake import Intake
from broker_worker.worker.processor import Processor, Rules
from broker_worker.worker.resources import Resources
from broker_worker.worker.runs import Runs
from broker_worker.worker.slots import Slots

DEFAULTS = Settings()


@dataclass
class World:
    """One worker with everything around it."""

    registry: Registry
    clock: VirtualClock = field(default_factory=VirtualClock)
    events: list[Event] = field(default_factory=list)
    runs: Runs = field(default_factory=Runs)
    worker: UUID = field(default_factory=uuid4)
    concurrency: int = 16
    on_lost: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        draws = random.Random(7)
        self.database = MemoryDatabase(self.clock)
        self.broker = MemoryBroker(["default"])
        self.store = MemoryStore(
            self.database,
            worker=self.worker,
            memory=self.runs,
            owed=lambda owed: self.relay.promptly(owed),  # noqa: PLW0108 - the relay is made below
            grace=timedelta(0),
        )
        self.relay = Relay(self.store, self.broker, emit=self.events.append)
        limits = Limits(
            RetryPolicy(DEFAULTS.max_attempts, DEFAULTS.retry_delay, DEFAULTS.retry_max_delay),
            DEFAULTS.task_timeout,
        )
        self.resources = Resources(self.registry)
        tools = Tools(
            registry=self.registry,
            checkpoints=self.store,
            progress=self,
            completion=lambda claim, result: Completion("SELECT", (claim.key, result)),
            max_result_bytes=65536,
        )
        self.executor = Executor(
            limits=limits,
            threads=4,
            tools=tools,
            resources=self.resources,
            tasks=self.store,
            clock=self.clock,
            random=draws.random,
        )
        self.processor = Processor(
            registry=self.registry,
            rules=Rules(limits, DEFAULTS.max_body_bytes, ["default"], ()),
            tasks=self.store,
            publisher=self.broker,
            executor=self.executor,
            runs=self.runs,
            clock=self.clock,
            random=draws.random,
            emit=self.events.append,
        )
        self.slots = Slots(self.concurrency, on_lost=self.on_lost)
        self.intake = Intake(
            lambda delivery: self.processor.process(delivery, self.slots),
            start_over=lambda delivery: self.processor.start_over(delivery, self.slots),
            name="work",
            clock=self.clock,
            random=draws.random,
            emit=self.events.append,
        )

    def report(self, claim: Claim, fraction: float, note: str) -> None:
        """Take no note of progress."""

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        await self.store.register()
        await self.resources.open()
        relay = asyncio.create_task(self.relay.run())
        self.channel = self.broker.consume("default", self.intake.take, prefetch=self.concurrency)
        try:
            yield
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)
            self.executor.close()

    def send(self, name: str, task_id: str | None, payload: object = None) -> None:
        properties = Properties(type=name, message_id=task_id)
        self.broker.send("default", properties, json.dumps({} if payload is None else payload).encode())

    def state(self, name: str, task_id: str) -> TaskState:
        return self.database.tasks[TaskId("default", name, task_id)].task.state

    async def until_finished(self, count: int = 1) -> None:
        """Wait until as many tasks are finished."""
        rows = self.database.tasks
        while sum(row.task.state in TERMINAL for row in rows.values()) < count:
            await asyncio.sleep(1)


def world(**handlers: object) -> World:
    registry = Registry()
    for name, function in handlers.items():
        registry.task(name)(function)  # type: ignore[type-var]  # a handler of the test
    return World(registry)


@in_virtual_time
async def test_a_dependency_that_is_away_for_twenty_minutes_makes_no_dead_letter_at_default_settings() -> (
    None
):
    attempts: list[int] = []

    async def call(context: Context) -> str:
        attempts.append(context.attempt)
        if here.clock.monotonic() < 20 * 60:
            raise ConnectionError("the dependency is away")
        return "done"

    here = world(call=call)

    async with here.working():
        for number in range(200):
            here.send("call", f"t-{number}")
        await here.until_finished(200)

    assert {row.task.state for row in here.database.tasks.values()} == {TaskState.SUCCEEDED}
    assert not here.database.letters
    assert 1 < max(attempts) < DEFAULTS.max_attempts
    assert not here.database.outbox


@in_virtual_time
async def test_a_claim_is_made_only_when_a_slot_is_free() -> None:
    ends = asyncio.Event()

    async def wait() -> None:
        await ends.wait()

    here = world(wait=wait)
    here.concurrency = 16

    async with here.working():
        for number in range(16):
            here.send("wait", f"t-{number}")
        await asyncio.sleep(1)
        here.channel.close()  # the runs go on without their channel
        here.channel = here.broker.consume("default", here.intake.take, prefetch=16)
        here.send("wait", "late")
        await asyncio.sleep(1)
        assert TaskId("default", "wait", "late") not in here.database.tasks
        ends.set()
        await here.until_finished(17)

    started = [event for event in here.events if isinstance(event, AttemptStarted)]
    assert len(started) == 17


@in_virtual_time
async def test_a_redelivery_takes_the_place_of_the_delivery_that_a_run_lost() -> None:
    ends = asyncio.Event()

    async def wait() -> None:
        await ends.wait()

    here = world(wait=wait)

    async with here.working():
        here.send("wait", "t-1")
        await asyncio.sleep(1)
        here.channel.close()
        here.channel = here.broker.consume("default", here.intake.take, prefetch=16)
        await asyncio.sleep(1)
        assert len(here.channel.unsettled) == 1  # held for the run, not acked
        ends.set()
        await here.until_finished()
        await asyncio.sleep(1)

    assert here.channel.unsettled == []
    how = [event.how for event in here.events if isinstance(event, DeliverySettled)]
    assert how == ["adopted"]
    assert sum(isinstance(event, AttemptStarted) for event in here.events) == 1


@in_virtual_time
async def test_an_error_of_ours_on_a_redelivery_that_a_run_holds_neither_acks_it_nor_ends_the_run() -> None:
    ends = asyncio.Event()

    async def wait() -> None:
        await ends.wait()

    here = world(wait=wait)
    settle = here.processor._settle

    async def fails(*arguments: object) -> None:
        await settle(*arguments)  # type: ignore[arg-type]
        raise RuntimeError("a bug")

    async with here.working():
        here.send("wait", "t-1")
        await asyncio.sleep(1)
        here.channel.close()
        setattr(here.processor, "_settle", fails)  # noqa: B010 - the type checker minds the other form
        here.channel = here.broker.consume("default", here.intake.take, prefetch=16)
        await asyncio.sleep(10)
        assert len(here.channel.unsettled) == 1
        assert len(here.runs) == 1
        ends.set()
        await here.until_finished()
        await asyncio.sleep(1)

    assert here.channel.unsettled == []
    assert sum(isinstance(event, AttemptStarted) for event in here.events) == 1


@in_virtual_time
async def test_an_outcome_is_held_until_the_store_is_back_and_the_handler_is_not_run_again() -> None:
    runs = 0

    async def once() -> str:
        nonlocal runs
        runs += 1
        return "done"

    here = world(once=once)
    record = here.store.record
    failures = iter(range(100))

    async def away(claim: Claim, outcome: Outcome) -> Outcome | None:
        if next(failures) < 50:
            raise StoreUnavailableError("away")
        return await record(claim, outcome)

    here.store.record = away  # type: ignore[method-assign]

    async with here.working():
        here.send("once", "t-1")
        await here.until_finished()

    assert runs == 1
    assert here.state("once", "t-1") is TaskState.SUCCEEDED
    assert here.clock.monotonic() > 60  # the pauses grew


def refuse_records(here: World, *, times: int) -> None:
    """Have the store refuse the next outcomes as values that Postgres can't hold."""
    record, refusals = here.store.record, iter([StoreDataError("22P02: invalid")] * times)

    async def refuse(claim: Claim, outcome: Outcome) -> Outcome | None:
        for error in refusals:
            raise error
        return await record(claim, outcome)

    here.store.record = refuse  # type: ignore[method-assign]


@in_virtual_time
async def test_a_result_that_the_store_refuses_ends_as_a_dead_letter_and_not_in_a_loop() -> None:
    async def odd() -> str:
        return "odd"

    here = world(odd=odd)
    refuse_records(here, times=1)

    async with here.working():
        here.send("odd", "t-1")
        await here.until_finished()

    (letter,) = here.database.letters.values()
    assert letter.reason is Reason.RESULT_UNSERIALISABLE


@in_virtual_time
async def test_what_is_refused_without_any_value_of_the_handler_is_tried_again_with_growing_pauses() -> None:
    async def odd() -> str:
        return "odd"

    here = world(odd=odd)
    refuse_records(here, times=8)

    async with here.working():
        here.send("odd", "t-1")
        await here.until_finished()

    (letter,) = here.database.letters.values()
    assert letter.reason is Reason.RESULT_UNSERIALISABLE
    assert here.clock.monotonic() > 5


@in_virtual_time
async def test_an_outcome_survives_an_error_that_nobody_foresaw() -> None:
    runs = 0

    async def once() -> str:
        nonlocal runs
        runs += 1
        return "done"

    here = world(once=once)
    record = here.store.record
    bugs = iter([RuntimeError("a bug"), RuntimeError("again")])

    async def fail_twice(claim: Claim, outcome: Outcome) -> Outcome | None:
        for error in bugs:
            raise error
        return await record(claim, outcome)

    here.store.record = fail_twice  # type: ignore[method-assign]

    async with here.working():
        here.send("once", "t-1")
        await asyncio.sleep(0.01)
        assert len(here.channel.unsettled) == 1  # not acked while the outcome is not written
        await here.until_finished()

    assert runs == 1
    assert here.state("once", "t-1") is TaskState.SUCCEEDED


@in_virtual_time
async def test_a_message_without_an_id_is_sent_once_more_under_a_fresh_one() -> None:
    async def double(x: int) -> int:
        return 2 * x

    here = world(double=double)

    async with here.working():
        here.send("double", None, {"x": 2})
        await here.until_finished()

    (task,) = here.database.tasks
    assert str(UUID(task.id)) == task.id
    assert here.channel.unsettled == []


@in_virtual_time
async def test_a_message_without_an_id_that_can_never_be_sent_is_a_dead_letter_and_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never() -> None:
        raise AssertionError

    here = world(never=never)
    publish, tries = here.broker.publish, 0

    async def refuse_copies(outgoing: Outgoing) -> None:
        nonlocal tries
        if outgoing.kind is not Kind.COPY:
            return await publish(outgoing)
        tries += 1
        raise UnpublishableError("the headers have 131158 bytes, more than AMQP can carry")

    monkeypatch.setattr(here.broker, "publish", refuse_copies)
    async with here.working(), asyncio.timeout(1000):
        here.send("never", None, {})
        while not here.broker.dead_letters:
            await asyncio.sleep(1)

    (letter,) = here.broker.dead_letters
    assert letter.properties.headers["bw-reason"] == "malformed"
    assert here.channel.unsettled == []
    assert tries == 1


@in_virtual_time
async def test_an_error_of_ours_in_one_delivery_stops_no_other() -> None:
    async def fine() -> None:
        return None

    here = world(fine=fine)
    arrive = here.store.arrive

    async def fail_for_one(arrival: Arrival, delivery: Delivery) -> Met:
        if arrival.message.task.id == "cursed":
            raise RuntimeError("a bug")
        return await arrive(arrival, delivery)

    here.store.arrive = fail_for_one  # type: ignore[method-assign]

    async with here.working():
        here.send("fine", "cursed")
        here.send("fine", "t-1")
        await here.until_finished()

    assert here.state("fine", "t-1") is TaskState.SUCCEEDED


@in_virtual_time
async def test_an_attempt_that_succeeds_is_told_once_with_its_duration() -> None:
    async def rest() -> None:
        await asyncio.sleep(3)

    here = world(rest=rest)

    async with here.working():
        here.send("rest", "t-1")
        await here.until_finished()

    (finished,) = [event for event in here.events if isinstance(event, AttemptFinished)]
    assert finished.seconds == pytest.approx(3)
    assert finished.is_recorded


@in_virtual_time
async def test_an_error_whose_policy_allows_more_attempts_than_the_task_gets_them_all() -> None:
    registry = Registry()

    @registry.task("call", max_attempts=2, policies={ConnectionError: Policy(max_attempts=4)})
    async def call(context: Context) -> int:
        if context.attempt < 4:
            raise ConnectionError("the dependency is away")
        return context.attempt

    here = World(registry)

    async with here.working():
        here.send("call", "t-1")
        await here.until_finished()

    assert here.state("call", "t-1") is TaskState.SUCCEEDED
    assert here.database.tasks[TaskId("default", "call", "t-1")].result == "4"


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), asyncio.CancelledError()], ids=["raised", "cancelled"]
)
@pytest.mark.parametrize("step", ["_execute", "_record", "_ack"])
@in_virtual_time
async def test_after_an_error_of_ours_a_task_is_done_all_the_same_by_the_worker_that_claimed_it(
    step: str, error: BaseException
) -> None:
    async def double(x: int) -> int:
        return 2 * x

    here = world(double=double)
    whole, errors = getattr(here.processor, step), [error]

    def fails_once(*arguments: object, **options: object) -> object:
        if errors:
            raise errors.pop()
        return whole(*arguments, **options)

    setattr(here.processor, step, fails_once)

    async with here.working():
        here.send("double", "t-1", {"x": 21})
        await asyncio.sleep(10)

        assert here.state("double", "t-1") is TaskState.SUCCEEDED
        assert not here.channel.unsettled
    row = here.database.tasks[TaskId("default", "double", "t-1")].task
    assert row.attempt == 1
    assert len(here.runs) == 0


@in_virtual_time
async def test_an_error_of_ours_that_always_comes_back_ends_the_task_instead_of_running_it_for_ever() -> None:
    begun: list[int] = []

    async def double(x: int) -> int:
        begun.append(x)
        return 2 * x

    here = world(double=double)
    execute = here.processor._execute

    async def fails(*arguments: object) -> None:
        await execute(*arguments)  # type: ignore[arg-type]
        raise RuntimeError("a bug")

    setattr(here.processor, "_execute", fails)  # noqa: B010 - the type checker minds the other form

    async with here.working():
        here.send("double", "t-1", {"x": 21})
        await asyncio.sleep(3600)

        assert here.state("double", "t-1") is TaskState.DEAD
    (letter,) = here.database.letters.values()
    assert letter.reason is Reason.INTERRUPTED
    assert len(begun) == 50

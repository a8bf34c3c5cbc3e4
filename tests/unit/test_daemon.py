"""The end of a daemon, on parts that note what is asked of them."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import pytest

from broker_worker.events import Event, LifecycleChanged, ServiceFailed
from broker_worker.message import Message, TaskId
from broker_worker.outcome import Outcome
from broker_worker.step import Claim
from broker_worker.task import Task, TaskState
from broker_worker.testing.broker import MemoryDelivery
from broker_worker.testing.clock import VirtualClock, in_virtual_time
from broker_worker.testing.memory import MemoryStore
from broker_worker.testing.tables import MemoryDatabase
from broker_worker.worker.daemon import Daemon, Parts, Signals
from broker_worker.worker.intake import Intake
from broker_worker.worker.runs import Runs

WORKER = UUID(int=1)


@dataclass
class End:
    """A daemon that has nothing but runs to release."""

    events: list[Event] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    runs: Runs = field(default_factory=Runs)
    signals: Signals = field(default_factory=Signals)

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(
            MemoryDatabase(self.clock),
            worker=WORKER,
            memory=self.runs,
            owed=lambda _: None,
            grace=timedelta(0),
        )
        self.parts = Parts(
            prepare=self.noting("prepare"),
            writers=(),
            services=(),
            consumptions=(),
            intakes=(),
            publish_rest=self.noting("publish_rest"),
            leave=self.noting("leave"),
            close=(self.noting("close"),),
        )

    def noting(self, what: str):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a job that notes its name
        async def job() -> None:
            self.done.append(what)

        return job

    async def run(self, *, asks: bool = True, grace: timedelta = timedelta(0)) -> int:
        daemon = Daemon(
            self.parts,
            signals=self.signals,
            runs=self.runs,
            tasks=self.store,
            grace=grace,
            clock=self.clock,
            random=random.random,
            emit=self.events.append,
        )
        if asks:
            self.signals.ask("the test")
            self.signals.stop.clear()
            asyncio.get_running_loop().call_soon(self.signals.stop.set)
        return await daemon.run()


def a_claim(key: int) -> Claim:
    task = TaskId("default", "name", str(key))
    row = Task(key, task, TaskState.RUNNING, 1, 3, 1, WORKER, b"")
    return Claim(row, Message(task=task, body=b"{}"))


@in_virtual_time
async def test_a_run_that_can_not_be_released_keeps_no_other_from_it_and_ends_nothing_early() -> None:
    end = End()
    released: list[int] = []

    async def record(claim: Claim, outcome: Outcome) -> Outcome | None:
        if claim.key == 1:
            raise RuntimeError("a bug")
        await asyncio.sleep(0.1)
        released.append(claim.key)
        return outcome

    end.store.record = record  # type: ignore[method-assign]
    for key in (1, 2, 3):
        end.runs.remember(a_claim(key), MemoryDelivery("default", None, b""))  # type: ignore[arg-type]

    assert await end.run() == 0

    assert released == [2, 3]
    assert end.done == ["prepare", "publish_rest", "leave", "close"]
    assert [event.service for event in end.events if isinstance(event, ServiceFailed)] == ["release"]


@in_virtual_time
async def test_a_step_of_the_end_that_fails_does_not_keep_the_next_from_coming() -> None:
    end = End()

    async def fail() -> None:
        raise RuntimeError("a bug")

    end.parts = Parts(
        prepare=end.parts.prepare,
        writers=(),
        services=(),
        consumptions=(),
        intakes=(),
        publish_rest=fail,
        leave=end.parts.leave,
        close=end.parts.close,
    )

    assert await end.run() == 0

    assert end.done == ["prepare", "leave", "close"]
    phases = [event.phase for event in end.events if isinstance(event, LifecycleChanged)]
    assert "cut_short" in phases


@in_virtual_time
async def test_a_daemon_that_gives_up_drains_and_exits_with_one() -> None:
    end = End()
    end.signals.give_up("too many handlers could not be ended")

    code = await end.run()

    assert code == 1
    assert end.done == ["prepare", "publish_rest", "leave", "close"]
    phases = {event.phase: event.detail for event in end.events if isinstance(event, LifecycleChanged)}
    assert phases["draining"] == "too many handlers could not be ended"


@in_virtual_time
async def test_giving_up_while_draining_does_not_cut_the_drain_short() -> None:
    signals = Signals()

    signals.ask("SIGTERM")
    signals.give_up("too many handlers could not be ended")

    assert (signals.exit_code, signals.reason) == (1, "SIGTERM")
    assert not signals.hurry.is_set()


@in_virtual_time
async def test_a_worker_that_is_asked_to_stop_while_it_prepares_leaves_off_and_lets_go() -> None:
    end = End()

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    end.parts = replace(end.parts, prepare=hang, let_go=(end.noting("let_go"),))

    assert await end.run() == 0
    assert end.done == ["let_go", "close"]


@in_virtual_time
async def test_what_a_preparation_opens_is_let_go_of_in_the_same_task() -> None:
    end = End()
    tasks: list[object] = []

    async def note_task() -> None:
        tasks.append(asyncio.current_task())

    end.parts = replace(end.parts, prepare=note_task, let_go=(note_task,))

    await end.run()

    assert tasks[0] is tasks[1]


@in_virtual_time
async def test_all_intakes_have_the_same_time_to_end_and_none_waits_for_another() -> None:
    end = End()
    cut: list[float] = []
    loop = asyncio.get_running_loop()

    async def go_on(_: object) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cut.append(loop.time() - began)
            raise

    intakes = [
        Intake(
            go_on, start_over=go_on, name=name, clock=end.clock, random=random.random, emit=end.events.append
        )
        for name in ("tasks", "dead letters")
    ]
    end.parts = replace(end.parts, intakes=intakes, leave_at_once=end.noting("leave at once"))
    for intake in intakes:
        loop.call_later(0.1, intake.take, MemoryDelivery("default", None, b""))  # type: ignore[arg-type]
    loop.call_later(0.2, end.signals.ask, "the test")
    began = loop.time() + 0.2

    assert await end.run(asks=False, grace=timedelta(seconds=25)) == 0
    assert [round(each) for each in cut] == [25, 25]
    assert end.done == ["prepare", "publish_rest", "leave", "close"]


@in_virtual_time
async def test_an_end_that_does_not_come_to_its_end_is_left_as_it_is() -> None:
    end = End()
    left: list[float] = []

    async def hang() -> None:
        await asyncio.sleep(3600)

    loop = asyncio.get_running_loop()

    class Hanging:
        run = close = staticmethod(hang)

        def stop_consuming(self) -> None:
            asyncio.get_running_loop().call_soon(end.signals.hurry.set)

    class Stuck(Intake):
        async def drain(self, grace: timedelta, hurry: asyncio.Event) -> None:
            await hang()

    stuck = Stuck(
        lambda _: hang(),
        start_over=lambda _: hang(),
        name="stuck",
        clock=end.clock,
        random=random.random,
        emit=end.events.append,
    )
    end.parts = replace(
        end.parts, consumptions=(Hanging(),), intakes=(stuck,), leave_at_once=lambda: left.append(loop.time())
    )
    began = loop.time()

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(end.run())
        await asyncio.sleep(60)
        running.cancel()

    assert [round(moment - began) for moment in left] == [15]


@in_virtual_time
async def test_a_start_that_does_not_let_itself_be_stopped_is_left_as_it_is() -> None:
    end = End()
    left: list[float] = []
    loop = asyncio.get_running_loop()

    async def go_on() -> None:
        while not left:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600 if not left else 0)

    def leave() -> None:
        left.append(loop.time())
        running.cancel()

    end.parts = replace(end.parts, prepare=go_on, leave_at_once=leave)
    began = loop.time()

    running = asyncio.ensure_future(end.run())
    await asyncio.wait({running})

    assert [round(moment - began) for moment in left] == [15]


@in_virtual_time
async def test_a_part_that_was_cancelled_by_nobody_ends_the_worker_for_its_supervisor() -> None:
    end = End()

    async def be_cancelled() -> None:
        raise asyncio.CancelledError

    end.parts = replace(end.parts, writers=(be_cancelled,))

    assert await end.run(asks=False) == 1


@in_virtual_time
async def test_a_service_that_does_not_hear_its_cancellation_is_cancelled_again() -> None:
    end = End()
    heard: list[float] = []

    async def answers_with_another_error_and_lives_on() -> None:
        while len(heard) < 3:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            heard.append(end.clock.monotonic())

    end.parts = replace(end.parts, services=(answers_with_another_error_and_lives_on,))

    assert await end.run() == 0

    assert len(heard) == 3
    assert heard[-1] - heard[0] < 10


@in_virtual_time
async def test_a_step_that_ends_as_cancelled_keeps_the_next_from_nothing() -> None:
    end = End()

    async def awaits_what_it_has_cancelled() -> None:
        raise asyncio.CancelledError

    end.parts = replace(end.parts, let_go=(awaits_what_it_has_cancelled,))

    assert await end.run() == 0

    assert end.done == ["prepare", "publish_rest", "leave", "close"]


@in_virtual_time
async def test_an_end_that_hangs_after_a_start_that_failed_is_left_all_the_same() -> None:
    end = End()
    left: list[float] = []

    async def fail() -> None:
        await asyncio.sleep(1)
        raise RuntimeError("a resource can't be opened")

    end.parts = replace(end.parts, prepare=fail, leave_at_once=lambda: left.append(end.clock.monotonic()))

    with pytest.raises(RuntimeError):
        await end.run(asks=False)
    await asyncio.sleep(60)

    assert len(left) == 1

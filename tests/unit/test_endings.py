"""How attempts end in a whole worker on memory ports: by its own end, past their limits, by an operator."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import pytest

from broker_worker import Context, Registry, SyncContext
from broker_worker.message import TaskId
from broker_worker.ports import Delivery
from broker_worker.step import Met
from broker_worker.task import Arrival, TaskState
from broker_worker.testing.broker import MemoryChannel
from broker_worker.testing.clock import VirtualLoop, in_virtual_time
from broker_worker.worker.daemon import Daemon, Parts, Signals
from broker_worker.worker.executor import HARD_AFTER
from tests.unit.test_processor import DEFAULTS, World

TIMEOUT = timedelta(seconds=30)


@dataclass
class Consumption:
    """A world's channel, as a daemon opens and closes it."""

    here: World
    channel: MemoryChannel | None = None

    async def run(self) -> None:
        self.channel = self.here.broker.consume("default", self.here.intake.take, prefetch=16)
        await asyncio.Event().wait()

    def stop_consuming(self) -> None:
        if self.channel is not None:
            self.channel.stop_consuming()

    async def close(self) -> None:
        if self.channel is not None:
            self.channel.close()


@dataclass
class Life:
    """A daemon, from its start to its exit code."""

    registry: Registry
    concurrency: int = 16
    grace: timedelta = timedelta(0)
    signals: Signals = field(default_factory=Signals)

    def __post_init__(self) -> None:
        self.here = World(
            self.registry,
            concurrency=self.concurrency,
            on_lost=lambda: self.signals.give_up("too many handlers could not be ended"),  # as in app.py
        )
        self.daemon = Daemon(
            Parts(
                prepare=self.here.store.register,
                writers=(self.here.relay.run,),
                services=(),
                consumptions=(Consumption(self.here),),
                intakes=(self.here.intake,),
                publish_rest=self.here.relay.drain,
                leave=self.here.store.leave,
                close=(),
            ),
            signals=self.signals,
            runs=self.here.runs,
            tasks=self.here.store,
            grace=self.grace,
            clock=self.here.clock,
            random=random.random,
            emit=self.here.events.append,
        )

    def attempt_of(self, name: str, task_id: str) -> int:
        return self.here.database.tasks[TaskId("default", name, task_id)].task.attempt


def one(function: Callable[..., object], **options: object) -> Registry:
    registry = Registry()
    registry.task("it", **options)(function)  # type: ignore[arg-type]  # options of a task
    return registry


async def until(probe: Callable[[], bool]) -> None:
    """Wait for threads and other tasks; the test's own timeout is the end of it."""
    while not probe():
        await asyncio.sleep(0.001)


def pass_time(by: timedelta) -> None:
    """Let time pass at once, also while a thread works."""
    cast("VirtualLoop", asyncio.get_running_loop()).pass_time(by.total_seconds())


# --- the worker's own end ----------------------------------------------------------------


@in_virtual_time
async def test_a_thread_that_asks_its_context_gives_in_to_the_workers_end_and_is_released_uncharged() -> None:
    begun = threading.Event()

    def cooperative(context: SyncContext) -> None:
        begun.set()
        while True:
            context.raise_if_cancelled()

    life = Life(one(cooperative))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(life.daemon.run())
        life.here.send("it", "t-1")
        await until(begun.is_set)
        life.signals.ask("SIGTERM")

    life.here.executor.close()
    assert running.result() == 0
    assert not life.here.executor.has_left_runs
    assert not life.daemon.has_stubborn_handlers
    assert life.here.state("it", "t-1") is TaskState.QUEUED
    assert life.attempt_of("it", "t-1") == 0


@in_virtual_time
async def test_a_thread_that_ignores_the_workers_end_is_left_behind_and_released_uncharged() -> None:
    begun, ends = threading.Event(), threading.Event()

    def stubborn() -> None:
        begun.set()
        ends.wait()

    life = Life(one(stubborn))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(life.daemon.run())
        life.here.send("it", "t-1")
        await until(begun.is_set)
        life.signals.ask("SIGTERM")
    was_left = life.here.executor.has_left_runs  # for which run_daemon ends the process by os._exit
    ends.set()
    await until(lambda: not life.here.executor.has_left_runs)

    life.here.executor.close()
    assert running.result() == 0
    assert was_left
    assert life.here.state("it", "t-1") is TaskState.QUEUED
    assert life.attempt_of("it", "t-1") == 0


# --- past the hard limit -------------------------------------------------------------------


@in_virtual_time
async def test_a_thread_past_its_hard_limit_keeps_its_slot_while_its_retry_runs_in_another() -> None:
    begun, ends, stopped = threading.Event(), threading.Event(), threading.Event()

    def endless(context: SyncContext) -> str:
        if context.attempt == 2:
            return "beside the first"
        begun.set()
        while not ends.wait(0.001):
            if context.is_cancelled:
                stopped.set()
        return "too late"

    here = World(one(endless, timeout=TIMEOUT, retry_delay=0), concurrency=2)
    async with here.working():
        here.send("it", "t-1")
        await until(begun.is_set)
        pass_time(TIMEOUT)
        await until(stopped.is_set)
        lost_at_timeout = here.slots.lost
        pass_time(HARD_AFTER)
        await here.until_finished()
        lost_at_retry = here.slots.lost
        ends.set()
        await until(lambda: not here.executor.has_left_runs)

    row = here.database.tasks[TaskId("default", "it", "t-1")]
    assert [record.outcome for record in row.records.values()] == ["timeout"]
    assert (row.task.attempt, row.result) == (2, '"beside the first"')
    assert (lost_at_timeout, lost_at_retry, here.slots.lost) == (0, 1, 0)
    assert [here.slots.take_free() for _ in range(3)] == [True, True, False]


@in_virtual_time
async def test_with_half_of_its_slots_lost_a_worker_drains_what_runs_and_exits_with_one() -> None:
    registry, ends = Registry(), asyncio.Event()

    @registry.task("swallow", timeout=1, max_attempts=1)
    async def swallow() -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                continue

    @registry.task("slow", timeout=3600)
    async def slow() -> str:
        await asyncio.sleep(600)
        return "drained"

    life = Life(registry, concurrency=2, grace=timedelta(hours=1))
    life.here.send("slow", "t-1")
    life.here.send("swallow", "t-2")

    code = await life.daemon.run()

    ends.set()
    assert code == 1
    assert life.signals.reason == "too many handlers could not be ended"
    assert not life.signals.hurry.is_set()
    assert life.here.state("slow", "t-1") is TaskState.SUCCEEDED
    assert life.here.state("swallow", "t-2") is TaskState.DEAD


# --- an operator's cancel ------------------------------------------------------------------


def cancel_all(here: World) -> None:
    """Do what an operator's cancel leads to, in the row and in memory."""
    for key, epoch in here.runs.claims():
        (task,) = (row.task.id for row in here.database.tasks.values() if row.task.key == key)
        here.database.cancel(task)
        here.runs.cancel(key, epoch)


@pytest.mark.parametrize("in_thread", [False, True])
@in_virtual_time
async def test_a_cancel_reaches_the_attempt_that_runs(*, in_thread: bool) -> None:
    begun = threading.Event()

    async def on_loop(_: Context) -> None:
        begun.set()
        await asyncio.Event().wait()

    def threaded(context: SyncContext) -> None:
        begun.set()
        while True:
            context.raise_if_cancelled()

    here = World(one(threaded if in_thread else on_loop))
    async with here.working():
        here.send("it", "t-1")
        await until(begun.is_set)
        cancel_all(here)
        await here.until_finished()

    assert here.state("it", "t-1") is TaskState.CANCELLED
    assert here.clock.monotonic() < DEFAULTS.task_timeout.total_seconds()  # which would end it so, too
    assert not here.database.letters


@in_virtual_time
async def test_a_handler_that_cleans_up_after_a_cancel_is_not_disturbed_by_a_second() -> None:
    registry, begun, cleaned = Registry(), asyncio.Event(), list[str]()

    @registry.task("it")
    async def it() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(2)
            cleaned.append("up")

    here = World(registry)
    async with here.working():
        here.send("it", "t-1")
        await begun.wait()
        cancel_all(here)
        await asyncio.sleep(1)
        cancel_all(here)
        await here.until_finished()

    assert cleaned == ["up"]
    assert here.state("it", "t-1") is TaskState.CANCELLED


@pytest.mark.parametrize("in_thread", [False, True])
@in_virtual_time
async def test_a_cancel_between_claim_and_start_keeps_the_handler_from_starting(*, in_thread: bool) -> None:
    calls: list[str] = []

    async def on_loop() -> None:
        calls.append("loop")

    def threaded() -> None:
        calls.append("thread")

    here = World(one(threaded if in_thread else on_loop))
    arrive = here.store.arrive

    async def claim_and_cancel(arrival: Arrival, delivery: Delivery) -> Met:
        met = await arrive(arrival, delivery)
        cancel_all(here)
        return met

    here.store.arrive = claim_and_cancel  # type: ignore[method-assign]

    async with here.working():
        here.send("it", "t-1")
        await here.until_finished()

    assert calls == []
    assert here.state("it", "t-1") is TaskState.CANCELLED


@in_virtual_time
async def test_a_cancel_of_what_does_not_run_here_reaches_nobody() -> None:
    registry, begun, ends = Registry(), asyncio.Event(), asyncio.Event()

    @registry.task("it")
    async def it() -> str:
        begun.set()
        await ends.wait()
        return "undisturbed"

    here = World(registry)
    async with here.working():
        here.send("it", "t-1")
        await begun.wait()
        ((key, epoch),) = here.runs.claims()
        here.runs.cancel(key + 1, epoch)
        here.runs.cancel(key, epoch - 1)
        await asyncio.sleep(0)
        ends.set()
        await here.until_finished()
        here.runs.cancel(key, epoch)

    assert here.state("it", "t-1") is TaskState.SUCCEEDED

"""The daemon's life: start in order, serve, stop in the reverse order.

Start: database, schema, this worker's row; then what commits and publishes; then
the services; then consuming; then ready. Stop: not ready, no more deliveries, drain
for as long as the grace allows, cancel and release the rest through the outbox,
publish what is owed, stop the services, and last write the row that says "this
worker is dead". A second signal goes straight to "cancel and release".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from broker_worker.cancellation import cancel, cancels
from broker_worker.errors import UnavailableError
from broker_worker.events import Emit, LifecycleChanged, ServiceFailed
from broker_worker.outcome import Released
from broker_worker.ports import Clock, TaskStore
from broker_worker.worker.intake import Intake
from broker_worker.worker.patience import Patience
from broker_worker.worker.runs import Run, Runs

SETTLE_WAIT = timedelta(seconds=2)  # for commits that are on their way
RELEASE_WAIT = timedelta(seconds=2)  # for what is cut short to be written
PUBLISH_WAIT = timedelta(seconds=2)  # for what is owed to be confirmed; the rest waits in the outbox
GOODBYE_WAIT = timedelta(seconds=1)
CLOSE_WAIT = timedelta(seconds=2)
LET_GO_WAIT = timedelta(seconds=6)  # for handlers' resources and children, all together
END_WAIT = timedelta(seconds=15)  # for all that follows the grace; then the process leaves as it is
REPORT_INTERVAL = timedelta(minutes=1)  # between two lines about a database that is not there

Job = Callable[[], Awaitable[None]]


class Consumption(Protocol):
    """What takes deliveries from the broker."""

    async def run(self) -> None: ...

    def stop_consuming(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Signals:
    """How the outside asks for the end."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    exit_code: int = 0
    reason: str = ""

    def ask(self, reason: str) -> None:
        """Ask to stop; asked again, to hurry."""
        if self.stop.is_set():
            self.hurry.set()
        self.reason = self.reason or reason
        self.stop.set()

    def give_up(self, reason: str) -> None:
        """Ask to stop as `ask` does, with an exit code that tells the supervisor to start anew."""
        self.exit_code = 1
        if not self.stop.is_set():
            self.ask(reason)

    def fail(self, reason: str) -> None:
        """Stop at once, with an exit code that says so."""
        self.exit_code = 1
        self.reason = reason
        self.stop.set()
        self.hurry.set()


@dataclass(frozen=True, slots=True)
class Parts:
    """What app.py hands to the daemon, in the order in which it is started."""

    prepare: Job  # the database is there, its schema right, this worker's row written
    writers: Sequence[Job]  # group commits, the publisher's connection, the relay
    services: Sequence[Job]  # heartbeat, rescuer, pruner…
    consumptions: Sequence[Consumption]
    intakes: Sequence[Intake]
    publish_rest: Job
    leave: Job
    close: Sequence[Job]
    let_go: Sequence[Job] = ()  # what handlers had, before the connections
    leave_at_once: Callable[[], None] = lambda: None  # for an end that does not come to its end


class Daemon:
    """One process of workers."""

    def __init__(
        self,
        parts: Parts,
        *,
        signals: Signals,
        runs: Runs,
        tasks: TaskStore,
        grace: timedelta,
        clock: Clock,
        random: Callable[[], float],
        emit: Emit,
    ) -> None:
        self._parts = parts
        self._signals = signals
        self._runs = runs
        self._tasks = tasks
        self._grace = grace
        self._clock = clock
        self._random = random
        self._emit = emit
        self._stubborn = 0
        self._fault: Exception | None = None
        self._reported_at: float | None = None

    async def run(self) -> int:
        """Serve until asked to stop; the exit code.

        Raises:
            BrokerWorkerError: it can't serve at all: wrong schema, wrong topology.
        """
        self._emit(LifecycleChanged("starting"))
        seeing = asyncio.ensure_future(self._see_to_the_end())  # noqa: TID251 - cancelled below
        try:
            if await self._prepare():
                await self._serve()
        finally:
            seeing.cancel()
            for let_go in self._parts.let_go:
                await self._within(LET_GO_WAIT, let_go())
            for close in self._parts.close:
                await self._within(CLOSE_WAIT, close())
        self._emit(LifecycleChanged("stopped", self._signals.reason))
        if self._fault is not None:
            raise self._fault
        return self._signals.exit_code

    @property
    def has_stubborn_handlers(self) -> bool:
        """Whether handlers ignored their cancellation and would keep the process alive."""
        return self._stubborn > 0

    async def _prepare(self) -> bool:
        """Wait for the database for as long as it takes; `False` if asked to stop meanwhile."""
        patience = Patience(self._clock, self._random)
        stopped = asyncio.ensure_future(self._signals.stop.wait())  # noqa: TID251 - cancelled below
        try:
            while not self._signals.stop.is_set():
                try:
                    return await self._prepare_until(stopped)
                except UnavailableError as error:
                    self._report_waiting(str(error))
                    pause = asyncio.ensure_future(patience.pause())  # noqa: TID251 - ends by itself
                    await asyncio.wait({stopped, pause}, return_when=asyncio.FIRST_COMPLETED)
                    pause.cancel()
        finally:
            stopped.cancel()
        return False

    async def _prepare_until(self, stopped: asyncio.Future[Any]) -> bool:
        """Prepare, and leave off when asked to stop; here and in no other asyncio task.

        What is opened here is closed here: resources may hold scopes that belong to a task.
        """
        limit = asyncio.timeout(None)
        leave_off = partial(_expire, limit)
        try:
            async with limit:
                stopped.add_done_callback(leave_off)
                await self._parts.prepare()
        except TimeoutError:
            if not limit.expired():
                raise
            return False
        finally:
            stopped.remove_done_callback(leave_off)
        return True

    def _report_waiting(self, detail: str) -> None:
        now = self._clock.monotonic()
        if self._reported_at is None or now - self._reported_at >= REPORT_INTERVAL.total_seconds():
            self._reported_at = now
            self._emit(LifecycleChanged("waiting", detail))

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as writers:
            writing = [writers.create_task(self._guarded(job)) for job in self._parts.writers]
            async with asyncio.TaskGroup() as services:
                jobs = [*self._parts.services, *(each.run for each in self._parts.consumptions)]
                serving = [services.create_task(self._guarded(job)) for job in jobs]
                self._emit(LifecycleChanged("serving"))
                await self._signals.stop.wait()
                await self._end()
                await cancel(serving)
            await cancel(writing)

    async def _guarded(self, job: Job) -> None:
        """Run a part of the daemon; if it fails, all stop in their order and `run` raises the error."""
        try:
            await job()
        except asyncio.CancelledError:
            if self._signals.stop.is_set():
                raise
            self._signals.fail("a part of the worker was cancelled, and not by the worker")
        except Exception as error:  # noqa: BLE001 - handed to `run`, which raises it
            self._fault = self._fault or error
            self._signals.fail(f"{type(error).__name__}: {error}")

    async def _see_to_the_end(self) -> None:
        """Once asked to stop, have the process leave when that takes too long: whatever hangs, hangs."""
        try:
            await self._signals.stop.wait()
            async with asyncio.timeout(self._grace.total_seconds()):
                await self._signals.hurry.wait()
        except TimeoutError:
            pass
        finally:  # also when cancelled: what comes last may hang as well
            asyncio.get_running_loop().call_later(END_WAIT.total_seconds(), self._leave_at_once)

    def _leave_at_once(self) -> None:
        self._emit(LifecycleChanged("cut_short", "the end did not come to its end"))
        self._parts.leave_at_once()

    async def _end(self) -> None:
        """Wind down; what that leaves undone if it fails half way is done by other workers."""
        try:
            await self._wind_down()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the rest of the end is to come
            self._emit(LifecycleChanged("cut_short", f"{type(error).__name__}: {error}"))
            self._signals.exit_code = 1
        finally:
            for intake in self._parts.intakes:
                intake.abandon()

    async def _wind_down(self) -> None:
        """Stop consuming, drain, release, publish the rest, say goodbye."""
        self._emit(LifecycleChanged("draining", self._signals.reason))
        for consumption in self._parts.consumptions:
            consumption.stop_consuming()
        intakes = self._parts.intakes
        await asyncio.gather(*(intake.drain(self._grace, self._signals.hurry) for intake in intakes))
        self._stubborn += sum(await asyncio.gather(*(intake.cut() for intake in intakes)))
        # a batch that is on its way may still claim for one that was cut
        await self._within(SETTLE_WAIT, self._tasks.settled())
        await self._within(RELEASE_WAIT, self._release())
        await self._within(PUBLISH_WAIT, self._parts.publish_rest())
        for consumption in self._parts.consumptions:
            await self._within(CLOSE_WAIT, consumption.close())
        await self._within(GOODBYE_WAIT, self._parts.leave())

    async def _release(self) -> None:
        """Write what was cut short: the outcome where there is one, else a release, uncharged."""
        async with asyncio.TaskGroup() as releases:
            for run in self._runs.unfinished():
                releases.create_task(self._release_one(run))

    async def _release_one(self, run: Run) -> None:
        try:
            recorded = await self._tasks.record(run.claim, run.outcome or Released())
        except Exception as error:  # noqa: BLE001 - the others are released; this one is taken over
            return self._emit(ServiceFailed("release", error))
        delivery = self._runs.forget(run.claim)
        if recorded is not None and delivery is not None:
            await delivery.ack()
        return None

    async def _within(self, limit: timedelta, step: Awaitable[None]) -> None:
        """Give a step of the end its time and no more: nothing that it does is needed for safety."""
        cancels_before = cancels()
        try:
            async with asyncio.timeout(limit.total_seconds()):
                await step
        except (Exception, asyncio.CancelledError) as error:
            if cancels() > cancels_before:
                raise
            self._emit(LifecycleChanged("cut_short", f"{type(error).__name__}: {error}"))


def _expire(limit: asyncio.Timeout, _: object) -> None:
    limit.reschedule(asyncio.get_running_loop().time())

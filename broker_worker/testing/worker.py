"""One worker on memory ports: the objects that app.py wires on real ones, put together in the same way."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from random import Random
from uuid import uuid4

from broker_worker.events import AttemptFinished, Event, PublishFailed, ServiceFailed
from broker_worker.handler import Way
from broker_worker.outcome import Dead, Postponed
from broker_worker.outgoing import Owed
from broker_worker.payload import Function
from broker_worker.registry import Registry
from broker_worker.services.relay import Relay
from broker_worker.settings import Settings, StorePayloads
from broker_worker.task import TERMINAL
from broker_worker.testing.broker import MemoryBroker, MemoryChannel
from broker_worker.testing.clock import VirtualClock, VirtualLoop
from broker_worker.testing.errors import HarnessError
from broker_worker.testing.keeping import HarnessDatabase, HarnessStore
from broker_worker.testing.transactions import HarnessTransactions, SessionFactory
from broker_worker.worker.executor import Executor
from broker_worker.worker.hands import Tools
from broker_worker.worker.intake import Intake
from broker_worker.worker.processes import ProcessPool
from broker_worker.worker.processor import Processor, Rules
from broker_worker.worker.resources import Resources
from broker_worker.worker.runs import Runs
from broker_worker.worker.slots import Slots

RELAY_INTERVAL = 1.0  # seconds, as in app.py


class FakedResources(Resources):
    """Opens what no fake stands for."""

    def __init__(self, registry: Registry, fakes: Mapping[type, object]) -> None:
        super().__init__(registry)
        self._fakes = fakes

    async def _get(self, kind: type) -> object:
        if kind in self._fakes:
            self._open[kind] = self._fakes[kind]
            return self._fakes[kind]
        return await super()._get(kind)


class HarnessWorker:
    """The worker, its broker and its database. Background turns come when there is something due.

    A real worker looks each second; here nothing is scheduled while nothing is owed, so
    that a day of waiting is one jump of the clock.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        fakes: Mapping[type, object],
        session_factory: SessionFactory | None,
        seed: int,
    ) -> None:
        draw = Random(seed).random  # noqa: S311 - the same waits in every run
        self.clock = VirtualClock()
        self.moments: list[tuple[datetime, Event]] = []
        self.fault: HarnessError | None = None
        self.runs = Runs()
        self.id = uuid4()
        self.database = HarnessDatabase(self.clock)
        self.broker = MemoryBroker(settings.queues)
        self.store = HarnessStore(
            self.database,
            worker=self.id,
            memory=self.runs,
            owed=self.owe,
            grace=settings.unknown_task_grace,
            keeps_payloads=settings.store_payloads is StorePayloads.ALL,
        )
        self.relay = Relay(self.store, self.broker, emit=self._emit)
        self.resources = FakedResources(registry, fakes)
        self.processes = ProcessPool(
            modules=_modules(registry),
            limit=sum(settings.queues.values()),
            max_result_bytes=settings.max_result_bytes,
        )
        limits = settings.limits
        self.executor = Executor(
            limits=limits,
            threads=sum(settings.queues.values()),
            tools=Tools(registry, self.store, self.store, self.store.complete, settings.max_result_bytes),
            resources=self.resources,
            tasks=self.store,
            transactions=HarnessTransactions(self.store, session_factory),
            processes=self.processes,
            clock=self.clock,
            random=draw,
        )
        self.processor = Processor(
            registry=registry,
            rules=Rules(limits, settings.max_body_bytes, tuple(settings.queues), settings.reply_to),
            tasks=self.store,
            publisher=self.broker,
            executor=self.executor,
            runs=self.runs,
            clock=self.clock,
            random=draw,
            emit=self._emit,
        )
        self._queues = settings.queues
        self._draw = draw
        self._intakes: list[Intake] = []
        self._channels: list[MemoryChannel] = []
        self._jobs: list[asyncio.Task[None]] = []
        self._is_owing = asyncio.Event()

    # --- its life --------------------------------------------------------------------

    async def start(self) -> None:
        """Open the resources and consume."""
        await self.store.register()
        await self.resources.open()
        loop = asyncio.get_running_loop()
        self._jobs = [loop.create_task(self.relay.run()), loop.create_task(self._take_what_is_due())]
        for queue, concurrency in self._queues.items():
            slots = Slots(concurrency, on_lost=partial(self._lose_slots, queue))
            intake = Intake(
                partial(self.processor.process, slots=slots),
                start_over=partial(self.processor.start_over, slots=slots),
                name="work",
                clock=self.clock,
                random=self._draw,
                emit=self._emit,
            )
            self._intakes.append(intake)
            self._channels.append(self.broker.consume(queue, intake.take, prefetch=concurrency))

    async def stop(self) -> None:
        """End whatever runs, and close the resources."""
        for channel in self._channels:
            channel.stop_consuming()
        for intake in self._intakes:
            await intake.cut()
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)  # noqa: S101 - the harness saw to it
        with loop.holding_time():
            await self.processes.close()
        await self.resources.close()
        self.executor.close()

    def owe(self, owed: list[Owed]) -> None:
        """Publish what was just committed, and look later at what has to wait."""
        self.relay.promptly(owed)
        self._is_owing.set()

    async def _take_what_is_due(self) -> None:
        while True:
            await self._is_owing.wait()
            self._is_owing.clear()
            while self.database.outbox:
                await self._pause()
                await self.relay.run_once()

    async def _pause(self) -> None:
        """Wait as a relay does that looks each second: until the next row is due, or another is written."""
        await asyncio.sleep(RELAY_INTERVAL)
        due = min((row.available_at for row in self.database.outbox.values()), default=None)
        wait = (due - self.clock.now()).total_seconds() if due is not None else 0.0
        if wait > 0:
            self._is_owing.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._is_owing.wait()
            except TimeoutError:
                return

    # --- what is wrong with it -----------------------------------------------------------

    def _emit(self, event: Event) -> None:
        self.moments.append((self.clock.now(), event))
        self.fault = self.fault or _fault(event)

    def _lose_slots(self, queue: str) -> None:
        text = f"half of the slots of queue {queue!r} are lost to handlers that could not be ended"
        self.fault = self.fault or HarnessError(f"{text}; a worker would end here, with exit code 1")

    # --- what is left to do ----------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is ready, running, delayed or owed."""
        return next(self.left(), None) is None

    def left(self) -> Iterator[str]:
        """Say what is left to do, a line each."""
        for channel in self._channels:
            if count := self.broker.ready(channel.queue) + len(channel.unsettled):
                yield f"queue {channel.queue}: {count} deliveries"
        if self.broker.delayed:
            yield f"{self.broker.delayed} delayed copies on their way"
        if self.database.outbox:
            yield f"{len(self.database.outbox)} messages not published yet{self._last_refusal()}"
        for id_, row in self.database.tasks.items():
            if row.task.state not in TERMINAL:
                due = f", due at {row.due_at:%Y-%m-%d %H:%M:%S}" if row.due_at else ""
                yield f"{id_.name} {id_.id}: {row.task.state}, attempt {row.task.attempt}{due}"

    def _last_refusal(self) -> str:
        refusals = [each for _, each in self.moments if isinstance(each, PublishFailed)]
        return f" ({refusals[-1].error})" if refusals else ""


def _fault(event: Event) -> HarnessError | None:
    """What can't go on: an error of the worker's own, or of a handler that the harness can't run."""
    match event:
        case AttemptFinished(outcome=Postponed(failure=failure) | Dead(failure=failure)):
            return failure.error if isinstance(failure.error, HarnessError) else None
        case ServiceFailed(service=service, error=error):
            fault = HarnessError(f"the worker itself failed ({service}): {type(error).__name__}: {error}")
            fault.__cause__ = error
            return fault
        case _:
            return None


def _modules(registry: Registry) -> list[str]:
    """Where a child process finds the handlers that run in one: they have to be importable there."""
    return sorted({_module(each.target) for each in registry.handlers if each.way is Way.PROCESS})


def _module(target: Function) -> str:
    """The name to import it by, also where it was started by `python -m`."""
    spec = getattr(sys.modules.get(target.__module__), "__spec__", None)
    return spec.name if spec is not None else target.__module__

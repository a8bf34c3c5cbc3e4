"""Settings and handlers become a running daemon: the only file that knows everyone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import cast
from uuid import UUID, uuid4

from broker_worker.amqp.connection import Connection, Link, connected
from broker_worker.amqp.consumer import Consumption, Declare, Subscription
from broker_worker.amqp.declaration import declare
from broker_worker.amqp.delivery import AmqpDelivery
from broker_worker.amqp.publisher import Publisher
from broker_worker.amqp.topology import Topology
from broker_worker.clock import SystemClock
from broker_worker.collector import Collector
from broker_worker.errors import UnavailableError
from broker_worker.event_loop import loop_factory
from broker_worker.events import ConnectionChanged, Emit, LifecycleChanged, ServiceFailed
from broker_worker.handler import Way
from broker_worker.loading import load_registries
from broker_worker.observation import Observation
from broker_worker.ports import Delivery
from broker_worker.ports import Publisher as PublisherPort
from broker_worker.registry import Registry
from broker_worker.services.cancels import INTERVAL as CANCELS_INTERVAL
from broker_worker.services.cancels import Cancels
from broker_worker.services.guard import INTERVAL as GUARD_INTERVAL
from broker_worker.services.guard import Guard
from broker_worker.services.heartbeat import ANSWER_WITHIN, Heartbeat
from broker_worker.services.heartbeat import INTERVAL as BEAT_INTERVAL
from broker_worker.services.periodic import every
from broker_worker.services.progress import INTERVAL as PROGRESS_INTERVAL
from broker_worker.services.progress import ProgressWriter
from broker_worker.services.pruner import INTERVAL as PRUNE_INTERVAL
from broker_worker.services.pruner import Pruner, Retention
from broker_worker.services.relay import Relay
from broker_worker.services.rescuer import INTERVAL as RESCUE_INTERVAL
from broker_worker.services.rescuer import Rescuer
from broker_worker.settings import DeadLetters, Settings, StorePayloads
from broker_worker.signing import Keyring, Signatures
from broker_worker.store.cancels import CancelStore
from broker_worker.store.checkpoints import CheckpointStore
from broker_worker.store.completion import completion
from broker_worker.store.database import Database
from broker_worker.store.letters import LetterStore
from broker_worker.store.notices import Listener
from broker_worker.store.outbox import OutboxStore
from broker_worker.store.progress import ProgressStore
from broker_worker.store.pruning import PruningStore
from broker_worker.store.rescue import RescueStore
from broker_worker.store.schema import check_schema, migrate
from broker_worker.store.statistics import oldest_waiting, open_letters, outbox_gauge
from broker_worker.store.tasks import TaskStore
from broker_worker.store.transactions import Transactions
from broker_worker.store.workers import WorkerStore
from broker_worker.telemetry.metrics import Sample
from broker_worker.worker.daemon import Daemon, Parts, Signals
from broker_worker.worker.executor import Executor
from broker_worker.worker.hands import Tools
from broker_worker.worker.intake import Intake
from broker_worker.worker.letters import LetterDelivery, LetterReader
from broker_worker.worker.processes import ProcessPool
from broker_worker.worker.processor import Processor, Rules
from broker_worker.worker.resources import Resources
from broker_worker.worker.runs import Runs
from broker_worker.worker.signed_publisher import SignedPublisher
from broker_worker.worker.slots import Slots

FAILPOINT = "BROKER_WORKER_FAILPOINT"
RELAY_INTERVAL = timedelta(seconds=1)
SUMMARY_INTERVAL = timedelta(minutes=1)
COLLECTOR_INTERVAL = timedelta(seconds=1)
DECLARED_FOR = 3.0  # seconds for which a declaration is not repeated by another connection
SAMPLE_INTERVAL = timedelta(seconds=15)
LETTER_PREFETCH = 32  # dead letters at once: each is one small transaction
RELEASE = version("broker-worker")


class App:
    """The object graph of one process."""

    def __init__(self, settings: Settings, registry: Registry, observation: Observation) -> None:
        self.settings = settings
        self.registry = registry
        self.observation = observation
        self.emit = observation.emit
        self.worker: UUID = uuid4()
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.clock = SystemClock()
        self.signals = Signals()
        self.runs = Runs()
        self.limits = settings.limits
        self._build_stores()
        self._build_broker()
        self._build_core()
        self._build_services()

    async def run(self) -> int:
        """Serve until a signal; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signals.ask, signal.Signals(number).name)
        return await self.daemon.run()

    # --- what it is made of ----------------------------------------------------------

    def _build_stores(self) -> None:
        settings = self.settings
        reveal, schema = settings.database_url.reveal, settings.database_schema
        self.database = Database.open(
            reveal, schema=schema, pool_size=settings.database_pool_size, by_index=True
        )
        # the beat has a connection that nothing else can take
        self.beat_database = Database.open(reveal, schema=schema, pool_size=1, command_timeout=ANSWER_WITHIN)
        # and handlers' transactions have their own, for as long as the handlers may take
        self.handlers_database = Database.open(
            reveal, schema=schema, pool_size=settings.transactional_pool_size, command_timeout=None
        )
        self.outbox = OutboxStore(self.database, worker=self.worker)
        self.workers = WorkerStore(self.beat_database, worker=self.worker)

    def _build_broker(self) -> None:
        settings = self.settings
        self.topology = Topology(settings.prefix, tuple(settings.queues))
        self._declaring = asyncio.Lock()
        self._declared_at: float | None = None
        declare_missing = self._declare if settings.declare else None
        self.publisher = Publisher(
            self._link("publish"), self.topology, emit=self.emit, declare=declare_missing
        )
        self.outlet: PublisherPort = self.publisher
        self.signatures: Signatures | None = None
        if settings.signing_keys.is_set:
            keyring = Keyring(settings.signing_keys.reveal, report=self._report_signing)
            self.outlet = SignedPublisher(self.publisher, keyring)
            if settings.require_signatures:
                self.signatures = Signatures(keyring, settings.require_signatures)
                if idle := self.signatures.idle_patterns(settings.queues):
                    self._report_signing(f"REQUIRE_SIGNATURES names no queue of QUEUES by {','.join(idle)}")
        self.relay = Relay(self.outbox, self.outlet, emit=self.emit)
        self._declare_missing: Declare | None = declare_missing

    def _build_core(self) -> None:
        settings = self.settings
        self.tasks = TaskStore(
            self.database,
            worker=self.worker,
            memory=self.runs,
            owed=self.relay.promptly,
            grace=settings.unknown_task_grace,
            keeps_payloads=settings.store_payloads is StorePayloads.ALL,
        )
        self.resources = Resources(self.registry, ways=(Way.LOOP, Way.THREAD))
        self.collector = Collector()
        self.progress = ProgressWriter(ProgressStore(self.database, worker=self.worker))
        self.processes = ProcessPool(
            modules=settings.handlers,
            limit=sum(settings.queues.values()),
            max_result_bytes=settings.max_result_bytes,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )
        self.executor = Executor(
            limits=self.limits,
            threads=sum(settings.queues.values()),
            tools=Tools(
                registry=self.registry,
                checkpoints=CheckpointStore(self.database),
                progress=self.progress,
                completion=partial(completion, schema=settings.database_schema, worker=self.worker),
                max_result_bytes=settings.max_result_bytes,
                conceal=self.observation.conceal,
            ),
            resources=self.resources,
            tasks=self.tasks,
            transactions=Transactions(
                self.handlers_database,
                worker=self.worker,
                owed=self.relay.promptly,
                keeps_payloads=settings.store_payloads is StorePayloads.ALL,
            ),
            processes=self.processes,
            clock=self.clock,
            random=random.random,
        )
        self.processor = Processor(
            registry=self.registry,
            rules=Rules(
                self.limits,
                settings.max_body_bytes,
                tuple(settings.queues),
                settings.reply_to,
                self.signatures,
            ),
            tasks=self.tasks,
            publisher=self.outlet,
            executor=self.executor,
            runs=self.runs,
            clock=self.clock,
            random=random.random,
            emit=self.emit,
        )
        self.slots = {
            queue: Slots(concurrency, on_lost=self._give_up) for queue, concurrency in settings.queues.items()
        }
        self.intake = self._intake("work", self._process, self._start_over)
        self.consumption = self._consumption("consume", self._work_queues(), self.intake)

    def _build_services(self) -> None:
        rescues = RescueStore(self.database, worker=self.worker, owed=self.relay.promptly)
        heartbeat = Heartbeat(
            self.workers,
            RescueStore(self.beat_database, worker=self.worker, owed=self.relay.promptly),
            clock=self.clock,
            emit=self.emit,
            idle=self._idle,
            running=self.runs.keys,
            on_death=self.signals.fail,
        )
        rescuer = Rescuer(rescues, emit=self.emit)
        cancels = Cancels(
            CancelStore(self.database, worker=self.worker),
            running=self.runs.claims,
            stop=lambda claim: self.runs.cancel(*claim),
        )
        consumptions, intakes = [self.consumption], [self.intake]
        if letters := self._letter_queues():
            reader = self._letter_reader()

            def read(delivery: Delivery) -> Awaitable[None]:
                return reader.process(cast("LetterDelivery", delivery))

            letter_intake = self._intake("dead_letters", read, read)  # nothing is claimed from there
            intakes.append(letter_intake)
            consumptions.append(self._consumption("dead_letters", letters, letter_intake))
        self.observation.expect(
            links=["publish", "consume", *(["dead_letters"] if letters else [])],
            consumers=[each.queue for each in (*self._work_queues(), *letters)],
        )
        parts = Parts(
            prepare=self._prepare,
            writers=(self.tasks.run, self.publisher.run, self.relay.run),
            services=(
                self._service("heartbeat", BEAT_INTERVAL, heartbeat.run_once),
                self._service("rescuer", RESCUE_INTERVAL, rescuer.run_once),
                self._service("relay", RELAY_INTERVAL, self.relay.run_once),
                self._service("progress", PROGRESS_INTERVAL, self.progress.run_once),
                self._service("cancels", CANCELS_INTERVAL, cancels.run_once),
                *self._listening(cancels),
                self._service("pruner", PRUNE_INTERVAL, self._pruner().run_once, waits_first=True),
                self._service("sampler", SAMPLE_INTERVAL, self._sample),
                self._service("guard", GUARD_INTERVAL, self._guard(consumptions).run_once, waits_first=True),
                self._service("collector", COLLECTOR_INTERVAL, self.collector.run_once),
                self._service("summary", SUMMARY_INTERVAL, self.observation.summarise, waits_first=True),
            ),
            consumptions=consumptions,
            intakes=intakes,
            publish_rest=self.relay.drain,
            leave=self.workers.leave,
            let_go=(self.processes.close, self.resources.close),
            leave_at_once=partial(os._exit, 1),
            close=(
                self.publisher.close,
                self.handlers_database.close,
                self.database.close,
                self.beat_database.close,
            ),
        )
        self.daemon = Daemon(
            parts,
            signals=self.signals,
            runs=self.runs,
            tasks=self.tasks,
            grace=self.settings.shutdown_grace,
            clock=self.clock,
            random=random.random,
            emit=self.emit,
        )

    def _listening(self, cancels: Cancels) -> list[Callable[[], Awaitable[None]]]:
        """Hear of cancels at once, where there is a way past poolers."""
        if not self.settings.database_direct_url.is_set:
            return []
        listener = Listener(
            self.settings.database_direct_url.reveal,
            schema=self.settings.database_schema,
            on_notice=cancels.notice,
            on_change=lambda is_up, detail: self.emit(ConnectionChanged("listen", is_up, detail)),
        )
        return [listener.run, self._service("cancels", timedelta(0), cancels.run_noticed)]

    def _guard(self, consumptions: Sequence[Consumption]) -> Guard:
        def consuming() -> dict[str, bool]:
            if self.signals.stop.is_set():
                return {}
            return {queue: is_up for each in consumptions for queue, is_up in each.states().items()}

        return Guard(
            consuming=consuming,
            reach_afresh=self._reach_afresh,
            has_unrecorded=lambda: any(run.outcome is not None for run in self.runs.unfinished()),
            give_up=self.signals.give_up,
            clock=self.clock,
        )

    async def _reach_afresh(self) -> None:
        """Connect anew to both servers: what holds for old connections proves nothing."""
        settings = self.settings
        async with connected(settings.amqp_url.reveal(), f"broker_worker {self.name} guard"):
            pass
        database = Database.open(settings.database_url.reveal, schema=settings.database_schema, pool_size=1)
        try:
            await database.ping()
        finally:
            await database.close()

    def _pruner(self) -> Pruner:
        settings = self.settings
        retention = Retention(
            succeeded=settings.retention_succeeded,
            other=settings.retention_other,
            dead_letters=settings.dead_letter_retention,
            keeps_payloads=settings.store_payloads is StorePayloads.ALL,
        )
        return Pruner(PruningStore(self.database), retention, clock=self.clock, emit=self.emit)

    async def _sample(self) -> None:
        """Look at what only the servers know, for /metrics."""
        depths = {queue: await self.consumption.ready_depth(queue) for queue in self.settings.queues}
        letters = await open_letters(self.database)
        outbox = await outbox_gauge(self.database)
        self.observation.metrics.observe(
            Sample(
                ready_by_queue={queue: depth for queue, depth in depths.items() if depth is not None},
                oldest_by_queue=await oldest_waiting(self.database),
                open_dead_letters={(each.queue, each.reason): each.count for each in letters},
                outbox_rows=outbox.size,
                outbox_age=timedelta(seconds=outbox.oldest_due_age),
            )
        )

    def _report_signing(self, fault: str) -> None:
        self.emit(ServiceFailed("signing", UnavailableError(fault)))

    async def _prepare(self) -> None:
        if self.settings.auto_migrate:
            await migrate(self.database)
        await check_schema(self.database)
        await self.resources.open()
        if any(handler.way is Way.PROCESS for handler in self.registry.handlers):
            async with self.processes.child():  # one that can't start shows now, and the first waits for none
                pass
        await self.workers.register(name=self.name, release=RELEASE)
        self.collector.begin()

    def _process(self, delivery: Delivery) -> Awaitable[None]:
        return self.processor.process(delivery, self.slots[delivery.queue])

    def _start_over(self, delivery: Delivery) -> Awaitable[None]:
        return self.processor.start_over(delivery, self.slots[delivery.queue])

    async def _declare(self, connection: Connection) -> list[str]:
        """Declare what is missing: once for all connections that come up together."""
        async with self._declaring:
            if self._declared_at is not None and self.clock.monotonic() - self._declared_at < DECLARED_FOR:
                return []
            created = await declare(connection, self.topology)
            self._declared_at = self.clock.monotonic()
            return created

    def _give_up(self) -> None:
        self.signals.give_up("too many handlers could not be ended")

    def _idle(self) -> dict[str, float]:
        """Seconds for which each queue's consumer has had free prefetch without a break."""
        now = asyncio.get_running_loop().time()
        idle = {queue: self.consumption.idle_since(queue) for queue in self.settings.queues}
        return {queue: now - since for queue, since in idle.items() if since is not None}

    def _work_queues(self) -> list[Subscription]:
        return [
            Subscription(
                queue, self.topology.work_queue(queue), concurrency, largest=self.settings.max_body_bytes
            )
            for queue, concurrency in self.settings.queues.items()
        ]

    def _letter_queues(self) -> list[Subscription]:
        """The queues of last resort that this service empties into its database."""
        queues, largest = [], self.settings.max_body_bytes
        if self.settings.dead_letters is DeadLetters.DATABASE:
            queues += [
                Subscription(dead_queue, dead_queue, LETTER_PREFETCH, largest=largest)
                for dead_queue in map(self.topology.dead_queue, self.settings.queues)
            ]
        if self.settings.unroutable:
            unroutable = self.topology.unroutable
            queues.append(Subscription(unroutable, unroutable, LETTER_PREFETCH, largest=largest))
        return queues

    def _letter_reader(self) -> LetterReader:
        return LetterReader(
            self.processor,
            self.tasks,
            LetterStore(self.database),
            dead_letter_exchange=self.topology.dead_letter_exchange,
            unroutable=self.topology.unroutable,
            queue_by_dead_queue={self.topology.dead_queue(queue): queue for queue in self.settings.queues},
            clock=self.clock,
            random=random.random,
            emit=self.emit,
        )

    def _intake(
        self,
        name: str,
        process: Callable[[Delivery], Awaitable[None]],
        start_over: Callable[[Delivery], Awaitable[None]],
    ) -> Intake:
        return Intake(
            process,
            start_over=start_over,
            name=name,
            clock=self.clock,
            random=random.random,
            emit=self.emit,
        )

    def _consumption(self, name: str, queues: list[Subscription], intake: Intake) -> Consumption:
        def take(delivery: AmqpDelivery) -> None:
            intake.take(delivery)

        return Consumption(
            self._link(name),
            self.topology,
            queues,
            on_delivery=take,
            emit=self.emit,
            declare=self._declare_missing,
        )

    def _link(self, name: str) -> Link:
        return Link(name, self.settings.amqp_url.reveal, self.emit, owner=f"broker_worker {self.name}")

    def _service(
        self,
        name: str,
        interval: timedelta,
        run_once: Callable[[], Awaitable[None]],
        *,
        waits_first: bool = False,
    ) -> Callable[[], Awaitable[None]]:
        return partial(
            every,
            interval,
            run_once,
            name=name,
            clock=self.clock,
            random=random.random,
            emit=self.emit,
            waits_first=waits_first,
        )


def run_daemon(settings: Settings) -> int:
    """Run the daemon until a signal; the exit code.

    Raises:
        BrokerWorkerError: it can't serve at all, or found itself unable to go on.
    """
    registry = load_registries(settings.handlers)
    observation = Observation(settings, names=[handler.name for handler in registry.handlers])

    _arm_failpoints(observation.emit)

    async def main() -> tuple[int, bool]:
        app = App(settings, registry, observation)
        observation.start()
        try:
            code = await app.run()
        finally:
            app.executor.close()
            observation.stop()
        return code, app.daemon.has_stubborn_handlers or app.executor.has_left_runs

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        code, is_stubborn = runner.run(main())
        if is_stubborn or _has_busy_threads():
            # a handler that can't be stopped would keep the process alive for ever; its claim is released
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _arm_failpoints(emit: Emit) -> None:
    """Have the places fail that tests name; nothing is wrapped or imported where none is named."""
    if named := os.environ.get(FAILPOINT):
        from broker_worker import failpoints  # noqa: PLC0415 - for tests alone

        failpoints.arm(named)
        emit(LifecycleChanged("armed", f"{FAILPOINT}={named}"))


def _has_busy_threads() -> bool:
    ours = ("broker-worker-handler", "asyncio_")  # the second are of asyncio.to_thread, in either loop
    return any(thread.name.startswith(ours) for thread in threading.enumerate())

"""A daemon as a process of the simulation: the real object graph on simulated ports, and its deaths.

`App` builds itself as ever; only the adapters that it names are replaced. So a change of the wiring is
simulated, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock
from uuid import UUID

from broker_worker import app
from broker_worker.amqp.consumer import Subscription
from broker_worker.errors import BrokerUnavailableError, UnavailableError
from broker_worker.events import (
    AttemptFinished,
    DeliverySettled,
    Event,
    PublishFailed,
    ServiceFailed,
    ServiceWorked,
)
from broker_worker.registry import Registry
from broker_worker.settings import Settings
from tests.faults.records import Process
from tests.simulation import store
from tests.simulation.adapters import SimulatedConsumption, SimulatedPublisher
from tests.simulation.broker import Broker, Connection
from tests.simulation.database import SimulatedDatabase
from tests.simulation.faults import Faults
from tests.simulation.loop import LIFE, Life
from tests.simulation.world import ProcessClock, World

UNSIMULATED = frozenset({"pruner", "sampler", "collector", "summary"})  # services that move no task
TOO_MANY_LEFT = "too many handlers"  # that could not be ended: a reason to end of the daemon's own
EXPECTED = (UnavailableError,)  # what a service's turn may fail with while servers are away


def _this() -> SimulatedProcess:
    """The process that runs now."""
    process = LIFE.get()
    assert isinstance(process, SimulatedProcess)
    return process


class _Database:
    """Stands for the class `Database`."""

    @staticmethod
    def open(*_: object, **__: object) -> store.Session:
        return _this().session


def _consumption(_: object, __: object, subscriptions: Sequence[Subscription], **rest: Any) -> object:  # noqa: ANN401 - of the real one's arguments
    return SimulatedConsumption(_this(), subscriptions, rest["on_delivery"])


def _clock() -> ProcessClock:
    return _this().clock


def _worker() -> UUID:
    return _this().worker


REPLACED: dict[str, Callable[..., object]] = {
    "Database": _Database,
    "TaskStore": store.SimulatedTaskStore,
    "Transactions": store.SimulatedTransactions,
    "OutboxStore": store.SimulatedOutbox,
    "WorkerStore": store.SimulatedWorkers,
    "RescueStore": store.SimulatedRescues,
    "LetterStore": store.SimulatedLetters,
    "CheckpointStore": store.SimulatedCheckpoints,
    "ProgressStore": store.SimulatedProgress,
    "CancelStore": store.SimulatedCancels,
    "Link": lambda *_, **__: None,
    "Publisher": lambda *_, **__: SimulatedPublisher(_this()),
    "Consumption": _consumption,
    "SystemClock": _clock,
    "uuid4": _worker,
}


@contextmanager
def replaced_adapters() -> Iterator[None]:
    """Let `App` build itself on simulated ports."""
    with ExitStack() as patches:
        for name, adapter in REPLACED.items():
            patches.enter_context(mock.patch.object(app, name, adapter))
        yield


class SimulatedApp(app.App):
    """The object graph of one simulated process."""

    def __init__(self, process: SimulatedProcess) -> None:
        self.process = process
        super().__init__(process.settings, process.registry, Witnessed(process))  # type: ignore[arg-type]
        parts = self.daemon._parts
        services = [each for each in parts.services if _service_name(each) not in UNSIMULATED]
        self.daemon._parts = replace(parts, services=services, leave_at_once=process.leave_at_once)

    @property
    def consumptions(self) -> list[SimulatedConsumption]:
        found: Any = self.daemon._parts.consumptions
        return list(found)

    async def _prepare(self) -> None:
        await self.resources.open()
        await self.workers.register(name=self.process.name, release="0")

    async def _reach_afresh(self) -> None:
        await self.process.session.call("ping", lambda: None)
        if not self.process.broker.is_up:
            raise BrokerUnavailableError("connection refused")

    def end(self) -> None:
        """Let go of what only a real process has."""
        self.executor.close()


class Witnessed:
    """Stands for `Observation`: nothing that a daemon says gets lost."""

    def __init__(self, process: SimulatedProcess) -> None:
        self._process = process

    def emit(self, event: Event) -> None:
        process = self._process
        match event:
            case ServiceFailed(service=service, error=error) if not isinstance(error, EXPECTED):
                process.complain(f"{service} failed: {type(error).__name__}: {error}")
            case DeliverySettled(how=how):
                process.world.done[how] += 1
            case ServiceWorked(what=what, count=count):
                process.world.done[what] += count
            case AttemptFinished(is_recorded=False):
                process.world.done["claim_lost"] += 1
            case AttemptFinished(outcome=outcome):
                process.world.done[type(outcome).__name__.lower()] += 1
            case PublishFailed():
                process.world.done["publish_failed"] += 1
            case _:
                pass

    def __getattr__(self, name: str) -> Callable[..., object]:
        """Take no notice of the rest (probes, metrics), and leave what is to be redacted as it is."""
        return lambda value=None, *_, **__: value


class SimulatedProcess(Life):
    """One incarnation of a daemon."""

    def __init__(
        self,
        name: str,
        *,
        world: World,
        faults: Faults,
        broker: Broker,
        database: SimulatedDatabase,
        settings: Settings,
        registry: Registry,
    ) -> None:
        super().__init__()
        self.name = name
        self.world = world
        self.faults = faults
        self.broker = broker
        self.database = database
        self.settings = settings
        self.registry = registry
        self.worker: UUID = UUID(int=world.random.getrandbits(128), version=4)
        skew = world.random.choice((0, 0, 0, -3600, 3600, 90, -7))
        self.clock: ProcessClock = ProcessClock(world, timedelta(seconds=skew))
        self.context = copy_context()
        self.context.run(LIFE.set, self)
        self.connections: list[Connection] = []
        self.session = store.Session(self, database)
        self.app: SimulatedApp | None = None
        self.exit_code: int | None = None
        self.is_ending = False

    def start(self) -> None:
        self.world.tell(Process(kind="began", process=self.name, worker=str(self.worker)))
        self.main = self.world.loop.create_task(self._main(), context=self.context)

    async def _main(self) -> None:
        try:
            self.app = SimulatedApp(self)
            code = await self.app.daemon.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is seen
            self.complain(f"the daemon ended: {type(error).__name__}: {error}")
            code = 1
        if not self.is_dead:
            reason = self.app.signals.reason if self.app else ""
            self.world.log(self.name, f"ended with {code}: {reason}")
            self._end(code, is_expected=self.is_ending or reason.startswith(TOO_MANY_LEFT))

    # --- its ends ----------------------------------------------------------------------

    def crash(self) -> None:
        """End at once, as after SIGKILL."""
        if not self.is_dead:
            self.world.broke("crash", self.name)
            self._end(-9)

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.app is not None and not self.is_dead:
            self.is_ending = True
            self.world.loop.call_soon(self.app.signals.ask, "SIGTERM", context=self.context)

    def leave_at_once(self) -> None:
        """Do what `os._exit` does."""
        if not self.is_dead:
            self.world.done["left_at_once"] += 1
            self._end(1, is_expected=self.is_ending)

    def pause(self, seconds: float) -> None:
        """Send SIGSTOP, and later SIGCONT."""
        if self.is_dead or self.is_paused:
            return
        number = self.world.broke("pause", self.name, lasts=True)
        self.is_paused = True
        for connection in [each for each in self.connections if each.is_open]:
            # the broker hears no heartbeats; the client finds the end of the connection when it goes on
            self.world.later(20 + self.world.random.random() * 12, self._hear_nothing, connection)
        self.world.later(seconds, self._resume, number)

    def _resume(self, number: int) -> None:
        if not self.is_dead and self.is_paused:
            self.world.loop.resume(self)
        self.world.mended(number, "pause", self.name)

    def _hear_nothing(self, connection: Connection) -> None:
        if self.is_paused and connection.is_open:
            connection.end("no heartbeat")

    def _end(self, code: int, *, is_expected: bool = True) -> None:
        self.is_dead = True
        self.exit_code = code
        self.world.tell(Process(kind="ended", process=self.name, worker=str(self.worker), exit_code=code))
        for connection in self.connections:
            # what was written to the socket may still arrive
            self.world.later(self.world.latency(), connection.end_here)

    # --- what its adapters ask ---------------------------------------------------------

    def connect(self) -> Connection:
        connection = self.broker.connect(self.name, self, self.context)
        self.connections = [each for each in self.connections if each.is_open]
        self.connections.append(connection)
        return connection

    def pass_by(self, step: str) -> None:
        """Pass a step at which a fault may be armed."""
        self.world.passed(step, self)

    def complain(self, text: str) -> None:
        """Say what should never be."""
        self.world.counts["complaints"] += 1
        self.world.log(self.name, f"UNEXPECTED {text}")


def _service_name(service: object) -> str:
    return str(service.keywords.get("name", "")) if isinstance(service, partial) else ""

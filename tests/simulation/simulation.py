"""One simulation: some daemons, a broker and a database, all that can go wrong, then peace, then the record.

`simulate` is a pure function of its seed: the same seed gives the same record, in any process.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

from broker_worker.settings import Settings
from broker_worker.task import TERMINAL
from tests.faults.records import Recording, line
from tests.simulation import handlers
from tests.simulation.broker import Broker
from tests.simulation.database import SimulatedDatabase
from tests.simulation.faults import Faults
from tests.simulation.loop import StandstillError
from tests.simulation.plan import Plan
from tests.simulation.process import SimulatedProcess, replaced_adapters
from tests.simulation.workload import QUEUES, Publisher, draw_workload
from tests.simulation.world import BEGAN_AT, World

Mutant = Callable[[], AbstractContextManager[object]]
"""Makes the code wrong while its context is entered; see tests/faults/mutants."""

CHAOS = 60.0  # seconds in which things go wrong
PEACE = 45.0  # seconds without any progress, after which the database's clock is set forward
LONGEST_DRAIN = 600.0  # seconds of virtual time; whoever needs more hangs
MOST_STEPS = 40  # of the clock, while it drains
RECOVERY = 25.0  # seconds: the longest handler, which may have the only slot, and some more
LOOK = 1.0  # seconds between two looks at whether all is quiet


@dataclass(slots=True)
class Simulated:
    """What came of a seed."""

    seed: int
    recording: Recording
    counts: Counter[str] = field(default_factory=Counter)  # of what was broken, by kind
    done: Counter[str] = field(default_factory=Counter)  # by the daemons, by what they call it
    stuck: str = ""  # why it did not come to its end
    callbacks: int = 0

    def digest(self) -> str:
        """Tell two runs apart by everything that was recorded."""
        digest = hashlib.sha256()
        for record in self.recording.all():
            digest.update(line(record).encode())
        return digest.hexdigest()


def simulate(
    seed: int, *, mutant: Mutant | None = None, messages: int | None = None, seconds: float = CHAOS
) -> Simulated:
    """Simulate one seed. With a `mutant`, the code is wrong meanwhile; the checker should see it."""
    with (
        _system_randomness(seed),
        replaced_adapters(),
        mutant() if mutant else nullcontext(),
        _no_collector(),
    ):
        return _simulated(World(seed), messages=messages, seconds=seconds)


def _simulated(world: World, *, messages: int | None, seconds: float) -> Simulated:
    loop = world.loop
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda _, context: world.log("loop", f"UNEXPECTED {_describe(context)}"))
    simulation = Simulation(world, messages=messages, seconds=seconds)
    stuck = ""
    try:
        try:
            loop.run_until_complete(simulation.run())
        except StandstillError as error:
            stuck = str(error)
        simulation.finish()
    finally:
        world.is_over = True
        simulation.dispose()
        loop.close()
        asyncio.set_event_loop(None)
    stuck = stuck or simulation.stuck
    return Simulated(world.seed, world.recording, world.counts, world.done, stuck, loop.ran)


class Simulation:
    """The parts of one simulated world, and its course."""

    def __init__(self, world: World, *, messages: int | None, seconds: float) -> None:
        rng = world.random
        self.world = world
        self.stuck = ""
        self.faults = Faults(world)
        self.database = SimulatedDatabase(world)
        self.broker = Broker(world, self.faults, QUEUES, delivery_limit=rng.choice((3, 6, 100)))
        prefetch = rng.choice((1, 2, 4, 8))
        self.settings = Settings(
            handlers=("tests.simulation.handlers",),
            queues=dict.fromkeys(QUEUES, prefetch),
            max_attempts=3,
            retry_delay=timedelta(seconds=1),
            retry_max_delay=timedelta(seconds=8),
            unknown_task_grace=timedelta(seconds=10),
            shutdown_grace=timedelta(seconds=rng.choice((0, 2, 8))),
            task_timeout=timedelta(seconds=20),
            reply_to=("replies",),
        )
        about = world.recording.about
        about.handlers = handlers.FACTS
        about.prefetch = prefetch * len(QUEUES)
        about.began_at = BEGAN_AT
        about.recovery = RECOVERY
        self._seconds = seconds
        self._processes: list[SimulatedProcess] = []
        self._places = rng.choice((2, 2, 3))
        self._incarnations: Counter[int] = Counter()
        self._place_of: dict[str, int] = {}
        workload = draw_workload(rng, messages=messages or rng.randint(25, 70), seconds=seconds * 0.8)
        self.publisher = Publisher(world, self.broker, workload)

    @property
    def living(self) -> list[SimulatedProcess]:
        return [each for each in self._processes if not each.is_dead]

    async def run(self) -> None:
        world = self.world
        for place in range(self._places):
            self._start(place)
        Plan(self).draw(self._seconds)
        world.later(LOOK, self._supervise)
        await asyncio.sleep(self._seconds)
        self._heal()
        await self._drain()

    def _start(self, place: int) -> None:
        self._incarnations[place] += 1
        name = f"worker-{place}.{self._incarnations[place]}"
        process = SimulatedProcess(
            name,
            world=self.world,
            faults=self.faults,
            broker=self.broker,
            database=self.database,
            settings=self.settings,
            registry=handlers.registry,
        )
        self._place_of[name] = place
        self._processes.append(process)
        process.start()

    def _supervise(self) -> None:
        """Start anew what has ended, as Kubernetes does."""
        for process in self._processes:
            if process.is_dead and process.name in self._place_of:
                place = self._place_of.pop(process.name)
                self.world.later(self.world.random.random() * 4, self._start, place)
        self.world.later(LOOK, self._supervise)

    def _heal(self) -> None:
        world = self.world
        world.is_healed = True
        world.armed.clear()
        self.faults.outage = ""
        self.broker.start()
        for process in self.living:
            if process.is_paused:
                world.loop.resume(process)
        world.recording.about.healed_at = world.clock.timestamp()
        world.progressed()

    # --- the end -------------------------------------------------------------------------

    async def _drain(self) -> None:
        world = self.world
        deadline = world.loop.time() + LONGEST_DRAIN
        steps = 0
        while not self._is_quiet():
            await asyncio.sleep(LOOK)
            if world.loop.time() > deadline or steps > MOST_STEPS:
                self.stuck = f"not quiet {LONGEST_DRAIN:g} s after all was healed: {', '.join(self._left())}"
                return
            if world.loop.time() - world.last_progress > PEACE and (by := self._until_due()) > timedelta(0):
                world.step_clock(by)
                world.progressed()
                steps += 1

    def _is_quiet(self) -> bool:
        return next(self._left(), None) is None

    def _left(self) -> Iterator[str]:
        if self.publisher.open:
            yield f"{self.publisher.open} messages not published"
        if self.broker.left:
            yield f"{self.broker.left} messages in the broker"
        if self.database.outbox:
            yield f"{len(self.database.outbox)} rows of the outbox"
        for id_, row in self.database.tasks.items():
            if row.task.state not in TERMINAL:
                yield f"{id_.name} {id_.id} is {row.task.state}"
        living = [each for each in self.living if each.app is not None]
        if len(living) < self._places or not all(
            consumption.all_consuming for each in living if each.app for consumption in each.app.consumptions
        ):
            yield "not all consume"
        if any(len(each.app.runs) for each in living if each.app):
            yield "a worker knows of a run"

    def _until_due(self) -> timedelta:
        """How far the database's clock has to be set forward until something is due that waits for it."""
        now = self.world.clock.now()
        database = self.database
        moments = [row.available_at for row in database.outbox.values()]
        moments += [
            row.due_at + timedelta(minutes=10) * (1 << row.task.reemissions)
            for row in database.tasks.values()
            if row.due_at is not None and row.task.state not in TERMINAL
        ]
        if not moments and any(row.task.state not in TERMINAL for row in database.tasks.values()):
            moments = [
                row.dead_at + timedelta(hours=6)
                for row in database.workers.values()
                if row.dead_at is not None and not row.is_swept
            ]
        later = [moment for moment in moments if moment > now]
        return min(later) - now + timedelta(seconds=1) if later else timedelta(0)

    def finish(self) -> None:
        """Record how it ended."""
        self.world.recording.about.ended_at = self.world.clock.timestamp()
        self.database.begin(actor="witness")
        self.database.tell_all()
        self.broker.sample()

    def dispose(self) -> None:
        """End all asyncio tasks, also those of the dead; nothing that they do is seen any more."""
        for process in self._processes:
            process.is_dead = True  # to its ports, too
        self.world.loop.dispose(self._processes)
        for process in self._processes:
            if process.app is not None:
                process.app.end()


@contextmanager
def _system_randomness(seed: int) -> Iterator[None]:
    """Let ids and whatever else comes from the system's randomness come from the seed."""
    rng = random.Random(f"system {seed}")
    state, urandom = random.getstate(), os.urandom
    random.seed(f"module {seed}")
    os.urandom = rng.randbytes
    try:
        yield
    finally:
        os.urandom = urandom
        random.setstate(state)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the collector out: when it comes is no part of a seed."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _describe(context: dict[str, object]) -> str:
    error = context.get("exception")
    return (
        f"{context.get('message')}: {type(error).__name__}: {error}" if error else str(context.get("message"))
    )

"""What all of a simulation shares: its loop, its clock, its dice, and the record of what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextvars import Context
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from broker_worker.testing.clock import BEGINNING
from tests.faults.records import About, Fault, LogLine, Record, Recording
from tests.simulation.loop import SimulationLoop

if TYPE_CHECKING:
    from tests.simulation.process import SimulatedProcess

PREFIX = "bw"
BEGAN_AT = BEGINNING.timestamp()


class World:
    """Everything that is nobody's own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(f"simulation {seed}")
        self.loop = SimulationLoop(Random(f"order {seed}"))
        self.outside = Context()  # of what no simulated process does
        self.clock = WorldClock(self)
        self.recording = Recording(about=About(seed=seed, source="simulation", prefix=PREFIX))
        self.recording.about.has_one_order = True
        self.counts: Counter[str] = Counter()  # of what was broken, by kind
        self.done: Counter[str] = Counter()  # by the daemons, by what they call it
        self.is_healed = False
        self.is_over = False
        self.last_progress = 0.0
        self.armed: list[Armed] = []
        self._order = 0
        self._faults = 0
        self._commits = 0

    # --- time and chance -------------------------------------------------------------

    def later(self, seconds: float, do: Callable[..., object], *args: object) -> None:
        """Let something happen that no simulated process does."""
        self.loop.call_later(seconds, do, *args, context=self.outside)

    def chance(self, probability: float) -> bool:
        """Throw a die; nothing is thrown, and nothing goes wrong, once all is healed."""
        return not self.is_healed and probability > 0 and self.random.random() < probability

    def latency(self) -> float:
        """A way over the network: mostly short, now and then not."""
        draw = self.random.random()
        return 0.0002 + 0.004 * draw if draw < 0.97 else 0.05 + self.random.random() * 0.3

    def next_commit(self) -> int:
        """Number a transaction."""
        self._commits += 1
        return self._commits

    # --- what was seen ---------------------------------------------------------------

    def tell(self, record: Record) -> None:
        """Record what was seen now."""
        if self.is_over:
            return
        self._order += 1
        record.at = self.clock.timestamp()
        record.order = self._order
        self.recording.add(record)

    def broke(self, kind: str, target: str = "", *, lasts: bool = False) -> int:
        """Record that something was broken; what `lasts` is mended later."""
        self.counts[kind] += 1
        self._faults += 1
        self.tell(Fault(phase="begun", number=self._faults, kind=kind, target=target))
        if not lasts:
            self.tell(Fault(phase="healed", number=self._faults, kind=kind, target=target))
        return self._faults

    def mended(self, number: int, kind: str, target: str = "") -> None:
        """Record that it is whole again."""
        self.tell(Fault(phase="healed", number=number, kind=kind, target=target))

    def step_clock(self, by: timedelta) -> None:
        """Set the database's clock forward."""
        number = self.broke("clock_stepped", lasts=True)
        self.clock.jump(by)
        self.mended(number, "clock_stepped")

    def log(self, process: str, line: str) -> None:
        """Record what a daemon says."""
        self.tell(LogLine(process=process, line=line))

    def progressed(self) -> None:
        """Note that something moved."""
        self.last_progress = self.loop.time()

    # --- faults that wait for a step -----------------------------------------------------

    def passed(self, step: str, process: SimulatedProcess) -> None:
        """Let a fault happen that was armed for this step."""
        for armed in self.armed:
            if armed.step == step and not self.is_healed and not self.is_over:
                armed.left -= 1
                if armed.left == 0:
                    self.armed.remove(armed)
                    armed.do(process)
                    return


class Armed:
    """A fault that happens when a step is passed for the `left`th time from now."""

    def __init__(self, step: str, left: int, do: Callable[[SimulatedProcess], None]) -> None:
        self.step = step
        self.left = left
        self.do = do


class WorldClock:
    """The database's clock, which is also the witness's; it can be set forward."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        return BEGINNING + self._ahead + timedelta(seconds=self._world.loop.time())

    def timestamp(self) -> float:
        return self.now().timestamp()

    def monotonic(self) -> float:
        return self._world.loop.time()

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def jump(self, by: timedelta) -> None:
        """Set it forward."""
        self._ahead += by


class ProcessClock:
    """The clock of one machine: wrong by as much as was drawn for it. Satisfies `ports.Clock`."""

    def __init__(self, world: World, skew: timedelta) -> None:
        self._world = world
        self._skew = skew
        self._offset = world.random.random() * 1e5  # nobody's monotonic clock is another's

    def now(self) -> datetime:
        return self._world.clock.now() + self._skew

    def monotonic(self) -> float:
        return self._world.loop.time() + self._offset

    async def sleep(self, seconds: float) -> None:
        from asyncio import sleep  # noqa: PLC0415 - its own name is taken

        await sleep(seconds)

"""A state of the model: one task's row, its messages, and the workers.

Epochs are not counted: of a copy and of a run it only matters whether it has the row's epoch
(`is_current`) or an older one, which it will never get rid of. So there are finitely many states,
however often something fails, and the explorer needs no budget of faults.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from broker_worker.task import TERMINAL, WAITING, TaskState


class Mark(IntEnum):
    """What a row's reason means to decisions."""

    NONE = 0
    CRASHED = 1  # its next run wants the crashers' lane
    LOST = 2  # its letter has no body, so nobody can replay it


class Row(NamedTuple):
    """The task's row, and what an onlooker knows besides."""

    state: TaskState
    attempt: int
    has_body: bool
    is_cancel_requested: bool
    mark: Mark
    interruptions: int  # of the last few that are allowed
    poisonings: int
    starts: int  # of handlers, without those that were released; in no database
    effects: int  # of handlers, that are committed with the row

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def is_running(self) -> bool:
        return self.state is TaskState.RUNNING

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL


class Pile(NamedTuple):
    """Copies in one place, by whether they have the row's epoch."""

    current: int = 0
    stale: int = 0

    def plus(self, *, is_current: bool) -> Pile:
        return Pile(self.current + is_current, self.stale + (not is_current))

    def minus(self, *, is_current: bool) -> Pile:
        return Pile(self.current - is_current, self.stale - (not is_current))

    def kinds(self) -> list[bool]:
        """Say of which there are some: current ones, stale ones."""
        return [is_current for is_current, count in ((True, self.current), (False, self.stale)) if count]

    @property
    def total(self) -> int:
        return self.current + self.stale


class Messages(NamedTuple):
    """The task's messages, apart from those in workers' hands."""

    unpublished: int = 0  # times that the publisher still sends it
    owed: Pile = Pile()  # rows of the outbox
    ready: Pile = Pile()  # in the queue or in a rung
    given_up: Pile = Pile()  # dead-lettered by the broker
    losses: int = 0  # that the broker may still have
    has_lost: bool = False

    @property
    def total(self) -> int:
        return self.owed.total + self.ready.total + self.given_up.total

    @property
    def current(self) -> int:
        return self.owed.current + self.ready.current + self.given_up.current

    def aged(self) -> Messages:
        return self._replace(
            owed=Pile(0, self.owed.total),
            ready=Pile(0, self.ready.total),
            given_up=Pile(0, self.given_up.total),
        )


class Delivery(NamedTuple):
    """A message in a worker's hands, not acked."""

    is_current: bool
    is_letter: bool = False  # given up by the broker, and read from the dead letters
    is_settled: bool = False  # what it leads to is committed: only its ack is missing


class Phase(IntEnum):
    """How far a run is."""

    RUNNING = 0
    RETURNED = 1
    FAILED = 2
    GAVE_UP = 3
    INTERRUPTED = 4  # by the worker's own end or error, or its commit is unknown: to be released
    RECORDED = 5
    ABANDONED = 6  # only in a mutant: nobody carries it on


class Run(NamedTuple):
    """What a worker's memory knows of a run."""

    phase: Phase
    is_current: bool
    delivery: Delivery | None  # to be acked at its end; none when its channel is gone


class Life(IntEnum):
    """A worker's process, and what its row says."""

    UP = 0
    ZOMBIE = 1  # declared dead, and has not noticed
    GONE = 2  # nobody has noticed
    DEAD = 3


class Flight(IntEnum):
    """A statement on its way to the database whose sender waits no more: it is executed later, or never."""

    NONE = 0
    CLAIM = 1
    SUCCESS = 2
    POSTPONEMENT = 3


class Worker(NamedTuple):
    """One process; one that is gone and that the row does not name is replaced by a new one."""

    life: Life = Life.UP
    is_named: bool = False  # by the row
    flight: Flight = Flight.NONE
    runs: tuple[Run, ...] = ()
    deliveries: tuple[Delivery, ...] = ()  # to be decided, or to be acked

    @property
    def is_there(self) -> bool:
        return self.life <= Life.ZOMBIE

    @property
    def is_declared_dead(self) -> bool:
        return self.life in {Life.ZOMBIE, Life.DEAD}

    def hands(self) -> list[Delivery]:
        """Everything unacked."""
        return [*self.deliveries, *(run.delivery for run in self.runs if run.delivery)]

    def with_delivery(self, delivery: Delivery) -> Worker:
        return self._replace(deliveries=tuple(sorted((*self.deliveries, delivery))))

    def without_delivery(self, delivery: Delivery) -> Worker:
        left = list(self.deliveries)
        left.remove(delivery)
        return self._replace(deliveries=tuple(left))

    def with_run(self, run: Run) -> Worker:
        return self._replace(runs=tuple(sorted((*self.runs, run), key=_order)))

    def without_run(self, run: Run) -> Worker:
        left = list(self.runs)
        left.remove(run)
        return self._replace(runs=tuple(left))

    def aged(self) -> Worker:
        """The same worker after the row's epoch grew."""
        runs = [run._replace(is_current=False, delivery=_aged(run.delivery)) for run in self.runs]
        deliveries = [each._replace(is_current=False) for each in self.deliveries]
        return self._replace(
            runs=tuple(sorted(runs, key=_order)), deliveries=tuple(sorted(deliveries)), flight=Flight.NONE
        )

    def beside(self, row: Row | None) -> Worker:
        """The same worker, without what makes no difference beside this row."""
        worker = self
        if worker.flight is not Flight.NONE and not _may_land(worker.flight, row):
            worker = worker._replace(flight=Flight.NONE)
        if worker.is_named and not (row is not None and row.is_running) and not worker.runs:
            worker = worker._replace(is_named=False)
        if not worker.is_there and worker.flight is Flight.NONE and not worker.is_named:
            return Worker()  # its successor
        return worker


class State(NamedTuple):
    """Everything there is; the workers in an order, because who is who makes no difference."""

    row: Row | None
    messages: Messages
    workers: tuple[Worker, ...]


def _aged(delivery: Delivery | None) -> Delivery | None:
    return delivery._replace(is_current=False) if delivery else None


def _order(run: Run) -> tuple[int, bool, Delivery | tuple[()]]:
    return run.phase, run.is_current, run.delivery or ()


def _may_land(flight: Flight, row: Row | None) -> bool:
    """A statement names epoch and state: once they are over it finds nothing."""
    if flight is Flight.CLAIM:
        return row is None or row.is_waiting
    return row is not None and row.is_running

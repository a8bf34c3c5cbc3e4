"""Visits every state that can be reached, judges it, and sees whether the end can be reached from it.

Rows, piles of messages and workers are numbered, and what one worker may do next to a row and
messages is worked out once: a state is a tuple of some small numbers, its successors lookups.
Workers are interchangeable, so their order in a state means nothing.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

from broker_worker.task import Holder
from tests.model.deliveries import of_deliveries
from tests.model.moves import Case, Crowd, Hands, Kind, Move, View
from tests.model.properties import Sight, broken_by_move, broken_in, is_at_rest, sight_of
from tests.model.runs import of_runs
from tests.model.services import of_everybody, of_one
from tests.model.state import Messages, Row, State, Worker
from tests.model.surroundings import of_broker, of_faults, of_people

LIMIT = 700_000  # states; more are a mistake in the model
NOBODY = -1  # who moves, where it is nobody in particular

Thing = TypeVar("Thing", bound=Hashable)
Key = tuple[int, ...]  # numbers of the row, of the messages, of each worker


@dataclass(frozen=True)
class Result:
    """What was found: the broken property with the way to it, or none."""

    states: int
    moves: int
    seconds: float
    broken: str | None = None
    trace: tuple[str, ...] = ()


class Broken(Exception):  # noqa: N818 - a finding
    """A property does not hold."""

    def __init__(self, name: str, key: Key, label: str) -> None:
        super().__init__(name)
        self.name = name
        self.key = key
        self.label = label


class Numbers(Generic[Thing]):
    """Gives each thing a number."""

    def __init__(self) -> None:
        self.things: list[Thing] = []
        self._number_by_thing: dict[Thing, int] = {}

    def of(self, thing: Thing) -> int:
        number = self._number_by_thing.get(thing)
        if number is None:
            number = self._number_by_thing[thing] = len(self.things)
            self.things.append(thing)
        return number


class Hop(NamedTuple):
    """A move in numbers."""

    label: str
    kind: Kind
    row: int
    messages: int
    me: int
    ages: bool
    names_me: bool
    acks: bool


class Fleet(NamedTuple):
    """What there is to say of some workers together."""

    movers: list[tuple[int, int, Holder]]  # position, number, and who of the others the row names
    holder: Holder
    hands: Hands
    all: Sight


Situation = tuple[int, int, int, Holder, Crowd, Hands]  # a view in numbers


def fleet_of(workers: list[Worker], numbers: Key) -> Fleet:
    """Sum workers up; one that looks like another before it moves as that one does."""
    sight = sight_of(workers)
    hands = Hands.CURRENT if sight.current_hands else Hands.STALE if sight.hands else Hands.EMPTY
    movers = [
        (at, number, _named(workers[:at] + workers[at + 1 :]))
        for at, number in enumerate(numbers)
        if number not in numbers[:at]
    ]
    return Fleet(movers, _named(workers), hands, sight)


def _named(workers: Sequence[Worker]) -> Holder:
    """Whether the one whom the row names is alive; decides only while the task runs."""
    for worker in workers:
        if worker.is_named:
            return Holder.DEAD if worker.is_declared_dead else Holder.ELSEWHERE
    return Holder.NOBODY


@dataclass
class Explorer:
    """One exploration of one case."""

    case: Case
    rows: Numbers[Row | None] = field(default_factory=Numbers)
    piles: Numbers[Messages] = field(default_factory=Numbers)
    workers: Numbers[Worker] = field(default_factory=Numbers)

    def __post_init__(self) -> None:
        self._came: dict[Key, tuple[Key | None, int, str]] = {}
        self._hops: dict[Situation, list[Hop]] = {}
        self._beside: dict[tuple[int, int, bool, bool], int] = {}
        self._fleets: dict[Key, Fleet] = {}
        self._before: dict[Kind, dict[Key, list[Key]]] = {
            kind: {} for kind in Kind if kind is not Kind.ADVERSE
        }
        self._moves = 0

    def explore(self) -> Result:
        began = time.process_time()
        try:
            self._visit_all()
            self._find_the_stuck()
        except Broken as broken:
            trace = tuple(self._trace(broken))
            return Result(len(self._came), self._moves, time.process_time() - began, broken.name, trace)
        return Result(len(self._came), self._moves, time.process_time() - began)

    # --- forwards --------------------------------------------------------------------

    def _visit_all(self) -> None:
        scope = self.case.scope
        first = State(
            None,
            Messages(unpublished=scope.published, losses=scope.losses),
            tuple(Worker() for _ in range(scope.workers)),
        )
        start = self._key(first)
        came = self._came
        came[start] = (None, NOBODY, "")
        waiting = deque([start])
        while waiting:
            key = waiting.popleft()
            for who, hop, after in self._after(key):
                self._moves += 1
                if hop.kind is not Kind.ADVERSE:
                    self._before[hop.kind].setdefault(after, []).append(key)
                if after in came:
                    continue
                came[after] = (key, who, hop.label)
                self._judge(after, hop)
                waiting.append(after)
            if len(self._came) > LIMIT:
                raise RuntimeError(f"more than {LIMIT} states: {self.case.scope.name}")

    def _after(self, key: Key) -> Iterator[tuple[int, Hop, Key]]:
        """Everything that may happen next."""
        row, messages, *workers = key
        fleet = self._fleet(tuple(workers))
        task = self.rows.things[row]
        is_run = task is not None and task.is_running
        crowd = self._crowd(self.piles.things[messages].total + fleet.all.hands)
        for at, number, holder in fleet.movers:
            others = workers[:at] + workers[at + 1 :]
            situation = (row, messages, number, holder if is_run else Holder.NOBODY, crowd, Hands.EMPTY)
            for hop in self._hops_of(key, situation):
                yield at, hop, self._landing(hop, [hop.me, *(self._other(other, hop) for other in others)])
        situation = (row, messages, NOBODY, fleet.holder if is_run else Holder.NOBODY, crowd, fleet.hands)
        for hop in self._hops_of(key, situation):
            yield NOBODY, hop, self._landing(hop, [self._other(other, hop) for other in workers])

    def _hops_of(self, key: Key, at: Situation) -> list[Hop]:
        hops = self._hops.get(at)
        if hops is None:
            hops = self._hops[at] = self._work_out(key, at)
        return hops

    def _work_out(self, key: Key, at: Situation) -> list[Hop]:
        row, messages, who, holder, crowd, hands = at
        me = Worker() if who == NOBODY else self.workers.things[who]
        view = View(self.rows.things[row], self.piles.things[messages], me, holder, crowd, hands)
        actors = (
            (of_everybody, of_people, of_broker)
            if who == NOBODY
            else (of_deliveries, of_runs, of_one, of_faults)
        )
        hops = []
        for move in chain.from_iterable(actor(view, self.case) for actor in actors):
            for broken in broken_by_move(view.row, move):
                raise Broken(broken, key, move.label)
            hops.append(self._hop(move))
        return hops

    def _hop(self, move: Move) -> Hop:
        me = move.me._replace(is_named=True) if move.names_me else move.me
        return Hop(
            move.label,
            move.kind,
            self.rows.of(move.row),
            self.piles.of(move.messages),
            self.workers.of(me.beside(move.row)),
            move.ages,
            move.names_me,
            move.acks,
        )

    def _landing(self, hop: Hop, workers: list[int]) -> Key:
        workers.sort()
        return (hop.row, hop.messages, *workers)

    def _other(self, number: int, hop: Hop) -> int:
        """Another worker after a move: its copies aged, its name gone from the row, or itself replaced."""
        at = (number, hop.row, hop.ages, hop.names_me)
        found = self._beside.get(at)
        if found is None:
            worker = self.workers.things[number]
            if hop.ages:
                worker = worker.aged()
            if hop.names_me:
                worker = worker._replace(is_named=False)
            found = self._beside[at] = self.workers.of(worker.beside(self.rows.things[hop.row]))
        return found

    def _fleet(self, workers: Key) -> Fleet:
        fleet = self._fleets.get(workers)
        if fleet is None:
            fleet = self._fleets[workers] = fleet_of(
                [self.workers.things[number] for number in workers], workers
            )
        return fleet

    def _crowd(self, count: int) -> Crowd:
        room = self.case.scope.room
        return Crowd.ROOM if count < room else Crowd.FULL if count == room else Crowd.OVER

    def _judge(self, key: Key, hop: Hop) -> None:
        row, messages, *workers = key
        sight = self._fleet(tuple(workers)).all
        for broken in broken_in(self.rows.things[row], self.piles.things[messages], sight):
            raise Broken("ack" if broken == "holder" and hop.acks else broken, key, "")

    # --- backwards -------------------------------------------------------------------

    def _find_the_stuck(self) -> None:
        """See that rest can be reached from everywhere by what is to be relied on, whatever handlers do."""
        for handlers in (Kind.RETURN, Kind.FAILURE):
            known = [self._before[Kind.PROGRESS], self._before[handlers]]
            reached = {key for key in self._came if is_at_rest(self._state(key))}
            waiting = deque(reached)
            while waiting:
                key = waiting.popleft()
                for before in chain.from_iterable(map_.get(key, ()) for map_ in known):
                    if before not in reached:
                        reached.add(before)
                        waiting.append(before)
            stuck = next((key for key in self._came if key not in reached), None)
            if stuck is not None:
                raise Broken("stuck", stuck, "")

    # --- for people --------------------------------------------------------------------

    def _key(self, state: State) -> Key:
        workers = sorted(self.workers.of(worker) for worker in state.workers)
        return (self.rows.of(state.row), self.piles.of(state.messages), *workers)

    def _state(self, key: Key) -> State:
        row, messages, *workers = key
        return State(
            self.rows.things[row],
            self.piles.things[messages],
            tuple(self.workers.things[number] for number in workers),
        )

    def _trace(self, broken: Broken) -> list[str]:
        """The way to a finding, the last state in full."""
        lines = [broken.label] if broken.label else []
        at: Key | None = broken.key
        lines.append(str(self._state(broken.key)))
        while at is not None:
            at, who, label = self._came[at]
            lines.append(label if who == NOBODY else f"worker {who}: {label}")
        return lines[::-1]


def explore(case: Case) -> Result:
    """Visit all of a case."""
    gc.disable()  # nothing here is part of a cycle, and there is much of it
    try:
        return Explorer(case).explore()
    finally:
        gc.enable()

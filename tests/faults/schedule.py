"""Which fault comes when, all drawn from a seed. Pure: the same seed makes the same plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from random import Random

MOST_AT_ONCE = 2
DEBT = 10  # how much likelier a kind is that did not come often enough yet
BUSY = 0.75  # of the time in which faults may be under way
# what half of the faults wait for; a commit in front of it means: from the next commit on
EVENTS = ("deliver", "ack", "publish", "confirm", "commit", "committed")


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of fault. What it is done to can bear one fault at a time."""

    name: str
    target: str  # worker, amqp, postgres_wire: one place's; broker, postgres, publisher: all have the one
    shortest: float = 0.0  # seconds; how long it lasts is drawn between these, evenly on a scale of powers
    longest: float = 0.0
    settling: float = 1.0  # seconds that it takes besides, about
    waits_for: str = ""  # an event without which it makes no sense
    most_places: int | None = None  # it is done to the first so many only
    survivable: float | None = None  # seconds, at the last place, whose daemon is to live through the run


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a fault waits for: the nth event of a kind, after one of another."""

    event: str
    nth: int
    after: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault."""

    number: int
    at: float  # seconds from the begin
    kind: str
    target: str
    place: int  # the daemon that it is done to, where it is one
    duration: float
    waiting: Waiting | None
    draw: float  # from [0, 1): what else there is to choose

    @property
    def resource(self) -> str:
        """What it is done to."""
        return f"{self.target} {self.place}" if self.target in PLACED else self.target


PLACED = frozenset({"worker", "amqp", "postgres_wire"})

KINDS: tuple[Kind, ...] = (
    Kind("worker_kill", "worker", 0.05, 3.0, 4.0, most_places=2),
    Kind("worker_stop", "worker", 0.5, 25.0, 2.0, most_places=2),
    Kind("worker_term", "worker", 0.0, 0.0, 5.0, most_places=2),
    Kind("child_kill", "worker", 0.0, 0.0, 0.5),
    Kind("relay_kill", "worker", 0.05, 1.0, 4.0, waits_for="publish", most_places=2),
    Kind("deploy", "worker", 0.0, 0.0, 10.0, most_places=1),
    Kind("broker_kill", "broker", 0.05, 5.0, 12.0),
    Kind("broker_stop", "broker", 0.5, 40.0, 2.0),
    Kind("broker_restart", "broker", 0.05, 5.0, 10.0),
    Kind("connection_close", "broker", 0.0, 0.0, 1.0),
    Kind("connections_close", "broker", 0.0, 0.0, 2.0),
    Kind("queue_delete", "broker", 0.05, 3.0, 12.0),
    Kind("memory_alarm", "broker", 1.0, 30.0, 3.0),
    Kind("amqp_reset", "amqp"),
    Kind("amqp_blackhole", "amqp", 1.0, 40.0),
    Kind("amqp_slice", "amqp", 1.0, 30.0),
    Kind("amqp_slow", "amqp", 1.0, 30.0),
    Kind("amqp_refuse", "amqp", 0.5, 15.0),
    Kind("amqp_flap", "amqp", 2.0, 2.0),
    Kind("amqp_swizzle", "amqp", 2.0, 20.0),
    Kind("ack_reset", "amqp", waits_for="ack"),
    Kind("confirms_lost", "amqp", 0.5, 15.0, waits_for="publish"),
    Kind("postgres_terminate", "postgres"),
    Kind("postgres_kill", "postgres", 0.05, 5.0, 4.0),
    Kind("postgres_read_only", "postgres", 0.5, 20.0),
    Kind("postgres_reset", "postgres_wire"),
    Kind("postgres_blackhole", "postgres_wire", 1.0, 40.0, survivable=8.0),
    Kind("postgres_slow", "postgres_wire", 1.0, 20.0),
    Kind("postgres_refuse", "postgres_wire", 0.5, 15.0, survivable=8.0),
    Kind("commit_swallowed", "postgres_wire", waits_for="committed"),
    Kind("commit_lost", "postgres_wire", waits_for="commit"),
    Kind("publisher_reset", "publisher", 0.0, 2.0),
)
KIND_BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}


def schedule(
    seed: int,
    *,
    seconds: float,
    faults: int,
    kinds: Sequence[Kind] = KINDS,
    minimum: int = 10,
    places: int = 3,
) -> tuple[Planned, ...]:
    """Plan `faults` over about `seconds`: at random moments, each kind at least `minimum` times if that fits.

    Durations are scaled so that all of it fits. No more than two are under way at a time, and one on the
    same thing: who would come too early comes when there is room.
    """
    random = Random(f"schedule {seed}")
    starts = sorted(random.uniform(0, seconds) for _ in range(faults))
    used: Counter[str] = Counter()
    drawn = []
    for number, start in enumerate(starts, 1):
        kind = _choose(random, kinds, used, minimum=minimum, left=faults - number + 1)
        used[kind.name] += 1
        drawn.append(_draw(random, number, start, kind, places=places))
    taken = sum(each.duration for each in drawn)
    settling = sum(KIND_BY_NAME[each.kind].settling for each in drawn)
    room = max(MOST_AT_ONCE * seconds * BUSY - settling, 0.0)
    factor = min(1.0, room / taken) if taken else 1.0
    return _laid_out([replace(each, duration=each.duration * factor) for each in drawn])


def _choose(random: Random, kinds: Sequence[Kind], used: Counter[str], *, minimum: int, left: int) -> Kind:
    owing = [kind for kind in kinds if used[kind.name] < minimum]
    if owing and sum(minimum - used[kind.name] for kind in owing) >= left:
        return random.choice(owing)
    return random.choices(kinds, [DEBT if used[kind.name] < minimum else 1 for kind in kinds])[0]


def _draw(random: Random, number: int, start: float, kind: Kind, *, places: int) -> Planned:
    duration = exp(random.uniform(log(kind.shortest), log(kind.longest))) if kind.shortest else kind.longest
    waiting = None
    if kind.waits_for:
        after = random.choice(("", "commit"))
        waiting = Waiting(kind.waits_for, random.randint(1, 20), after)
    elif random.random() < 0.5:
        waiting = Waiting(random.choice(EVENTS), random.randint(1, 20), random.choice(("", "commit")))
    place = random.randrange(min(places, kind.most_places or places))
    if kind.survivable is not None and place == places - 1:
        duration = min(duration, kind.survivable)
    return Planned(number, start, kind.name, kind.target, place, duration, waiting, random.random())


def _laid_out(drawn: Sequence[Planned]) -> tuple[Planned, ...]:
    """Delay what would be too much at a time."""
    lanes = [0.0] * MOST_AT_ONCE
    free: dict[str, float] = {}
    planned = []
    for each in drawn:
        lane = lanes.index(min(lanes))
        at = max(each.at, lanes[lane], free.get(each.resource, 0.0))
        end = at + each.duration + KIND_BY_NAME[each.kind].settling
        lanes[lane] = free[each.resource] = end
        planned.append(replace(each, at=at))
    return tuple(sorted(planned, key=lambda each: each.at))

"""What exists in the broker: every exchange, queue and binding, as data.

No other file spells a name. Arguments that our safety rests on are here and
not in policies, because AMQP can't set those; a value that would have to change
lives in the queue's name (`bw.delay.4000`), so that it never has to be redeclared.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType

from broker_worker.errors import ConfigurationError
from broker_worker.notation import QUEUE_NAME

PREFIX = re.compile(r"[A-Za-z0-9_-]{1,50}")
RUNGS = tuple(
    timedelta(seconds=seconds)
    for seconds in (1, *(2**power * factor for power in range(1, 12) for factor in (1, 1.5)), 4096)
)
"""How long the delay queues hold a message: {1, 1.5} x 2^k seconds up to 68 minutes."""
DELIVERY_LIMIT = 100  # returns to a work queue before the broker gives a message up: crashes, not failures
NEVER = 1_000_000  # a delivery limit that is never reached; -1 discards at once before RabbitMQ 4
CONSUMER_TIMEOUT = timedelta(hours=12)  # an unacked delivery for longer than this is taken back
POISON = "poison"  # the routing key's reason where the broker itself dead-letters

Argument = str | int


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    """An exchange; durable, never deleted by us."""

    name: str
    type: str
    arguments: Mapping[str, Argument] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue; durable, never deleted by us."""

    name: str
    arguments: Mapping[str, Argument]


@dataclass(frozen=True, slots=True)
class BindingSpec:
    """A queue's subscription to an exchange."""

    queue: str
    exchange: str
    routing_key: str


Entity = ExchangeSpec | QueueSpec | BindingSpec


@dataclass(frozen=True, slots=True)
class Topology:
    """All that one service needs in the broker, for its work queues `queues`.

    `rungs` are the delays that have a queue; fewer than `RUNGS` only in tests.
    """

    prefix: str
    queues: Sequence[str]
    rungs: Sequence[timedelta] = RUNGS

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        for name in self.queues:
            check_queue_name(name)

    @property
    def tasks_exchange(self) -> str:
        """Where publishers publish; the routing key is the queue's name."""
        return f"{self.prefix}.tasks"

    @property
    def return_exchange(self) -> str:
        """Where a delay queue's messages go when their time is over."""
        return f"{self.prefix}.return"

    @property
    def dead_letter_exchange(self) -> str:
        """Dead letters, routing key `<queue>.<reason>.<task>`."""
        return f"{self.prefix}.dlx"

    @property
    def unroutable(self) -> str:
        """The last resort: exchange and queue of that name."""
        return f"{self.prefix}.unroutable"

    @property
    def oversize(self) -> str:
        """Where messages stay whose bodies no reader of dead letters takes: an exchange and a queue."""
        return f"{self.prefix}.oversize"

    def delay(self, rung: timedelta) -> str:
        """Name a rung: exchange and queue of that name."""
        milliseconds = rung // timedelta(milliseconds=1)
        return f"{self.prefix}.delay.{milliseconds}"

    def work_queue(self, name: str) -> str:
        """Name the queue that is `name` to publishers."""
        return f"{self.prefix}.q.{name}"

    def dead_queue(self, name: str) -> str:
        """Name the queue that holds the dead letters of the work queue `name`."""
        return f"{self.prefix}.dead.{name}"

    def poison_key(self, name: str) -> str:
        """Name the routing key by which the broker itself dead-letters from the work queue `name`."""
        return f"{name}.{POISON}"

    def plan(self) -> tuple[Entity, ...]:
        """List what is declared, in an order in which nothing refers to what comes later."""
        return (
            *self._exchanges(),
            *self._last_resort(),
            *(entity for rung in self.rungs for entity in self._rung(rung)),
            *(entity for name in self.queues for entity in self._work(name)),
        )

    def _exchanges(self) -> tuple[ExchangeSpec, ...]:
        else_unroutable = MappingProxyType({"alternate-exchange": self.unroutable})
        return (
            ExchangeSpec(self.oversize, "fanout"),
            ExchangeSpec(self.unroutable, "fanout"),
            ExchangeSpec(self.tasks_exchange, "direct", else_unroutable),
            ExchangeSpec(self.return_exchange, "direct", else_unroutable),
            ExchangeSpec(self.dead_letter_exchange, "topic", else_unroutable),
        )

    def _last_resort(self) -> tuple[Entity, ...]:
        return (
            QueueSpec(self.oversize, _kept_for_good()),
            BindingSpec(self.oversize, self.oversize, ""),
            QueueSpec(self.unroutable, _read_by_us(self.oversize)),
            BindingSpec(self.unroutable, self.unroutable, ""),
        )

    def _rung(self, rung: timedelta) -> tuple[Entity, ...]:
        name = self.delay(rung)
        # No routing key of its own: the copy keeps its queue's name as key through the dead-lettering.
        # No expiry of the queue and no length limit: both would lose messages.
        arguments = _safe_dead_lettering(self.return_exchange) | {
            "x-message-ttl": rung // timedelta(milliseconds=1)
        }
        return (
            ExchangeSpec(name, "fanout"),
            QueueSpec(name, MappingProxyType(arguments)),
            BindingSpec(name, name, ""),
        )

    def _work(self, name: str) -> tuple[Entity, ...]:
        work, dead = self.work_queue(name), self.dead_queue(name)
        arguments = _safe_dead_lettering(self.dead_letter_exchange) | {
            "x-dead-letter-routing-key": self.poison_key(name),
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-consumer-timeout": CONSUMER_TIMEOUT // timedelta(milliseconds=1),
        }
        return (
            QueueSpec(dead, _read_by_us(self.oversize)),
            BindingSpec(dead, self.dead_letter_exchange, f"{name}.#"),
            QueueSpec(work, MappingProxyType(arguments)),
            BindingSpec(work, self.tasks_exchange, name),
            BindingSpec(work, self.return_exchange, name),
        )


def check_queue_name(name: str) -> str:
    """Return `name`, or raise ConfigurationError saying what a queue may be called."""
    if not QUEUE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} can't be the name of a queue: allowed are 1 to 100 letters, digits, - and _ (no dot)"
        )
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix`, or raise ConfigurationError saying what it may look like."""
    if not PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"{prefix!r} can't be the prefix: allowed are 1 to 50 letters, digits, - and _"
        )
    return prefix


def choose_rung(delay: timedelta, draw: float, rungs: Sequence[timedelta] = RUNGS) -> timedelta:
    """Pick the rung for `delay`: one of its two neighbours, so that the mean is exact.

    `draw` is from [0, 1). Below the first rung it is the first, above the last the last.
    """
    if delay <= rungs[0]:
        return rungs[0]
    if delay >= rungs[-1]:
        return rungs[-1]
    above = bisect_right(rungs, delay)
    lower, upper = rungs[above - 1], rungs[above]
    return upper if draw < (delay - lower) / (upper - lower) else lower


def _safe_dead_lettering(exchange: str) -> dict[str, Argument]:
    # at-least-once needs all of these; with any other overflow it is silently at-most-once
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _read_by_us(oversize: str) -> Mapping[str, Argument]:
    """Of a queue whose reader takes everything but bodies that are too large, and moves those."""
    return MappingProxyType({**_kept_for_good(), **_safe_dead_lettering(oversize)})


def _kept_for_good() -> Mapping[str, Argument]:
    return MappingProxyType({"x-queue-type": "quorum", "x-delivery-limit": NEVER})

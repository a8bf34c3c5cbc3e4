"""Frozen facts. The core emits them; telemetry turns them into logs and metrics."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from broker_worker.message import TaskId
from broker_worker.outcome import Outcome
from broker_worker.values import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionChanged:
    """A connection to a server was made or lost. `link`: consume, publish, dead_letters, listen, database."""

    link: str
    is_up: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ConsumerChanged:
    """The broker knows our consumer of `queue`, or no longer does."""

    queue: str
    is_up: bool
    detail: str = ""
    code: int | None = None  # AMQP's reply code, where the broker gave one


@dataclass(frozen=True, slots=True)
class PublishingBlocked:
    """The broker takes no publishes, for want of memory or disk, or takes them again."""

    is_blocked: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TopologyRepaired:
    """Something that was declared before was missing and is declared again."""

    what: str


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A handler begins; `waited` is the time since it was published, where the publisher said when."""

    task: TaskId
    attempt: int
    waited: timedelta | None
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class AttemptFinished:
    """A handler ended and its outcome is committed (or its claim was lost: `is_recorded` is false)."""

    task: TaskId
    attempt: int
    outcome: Outcome
    seconds: float
    is_recorded: bool = True
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class DeliverySettled:
    """A delivery was acked without a run: a duplicate, refused, expired, stamped, and so on.

    `how` is the lower-case name of what happened.
    """

    queue: str
    name: str | None
    task_id: str | None
    how: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ServiceFailed:
    """One turn of a background service raised, or a step of a worker; it is tried again at its next turn."""

    service: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class ServiceWorked:
    """A background service did something worth counting: `what` happened to `count` rows."""

    service: str
    what: str
    count: int


@dataclass(frozen=True, slots=True)
class PublishFailed:
    """A message of the outbox, or a stamped one, could not be published; it is tried again."""

    kind: str
    routing_key: str
    error: str


@dataclass(frozen=True, slots=True)
class LifecycleChanged:
    """The daemon itself: armed, starting, waiting, serving, draining, cut_short, stopped."""

    phase: str
    detail: str = ""


Event = (
    ConnectionChanged
    | ConsumerChanged
    | PublishingBlocked
    | TopologyRepaired
    | AttemptStarted
    | AttemptFinished
    | DeliverySettled
    | ServiceFailed
    | ServiceWorked
    | PublishFailed
    | LifecycleChanged
)

Emit = Callable[[Event], None]

"""What the core asks of the world. Adapters satisfy these by shape and import nothing of the core."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from broker_worker.message import Properties
from broker_worker.outgoing import Outgoing
from broker_worker.step import Claim
from broker_worker.task import Holder, Poisoning


class Delivery(Protocol):
    """One arrival of a message: the only thing that can be acked."""

    @property
    def queue(self) -> str:
        """The queue's name as publishers know it, without prefix."""

    @property
    def properties(self) -> Properties: ...

    @property
    def body(self) -> bytes: ...

    @property
    def redelivered(self) -> bool: ...

    @property
    def poisoning(self) -> Poisoning | None:
        """Set where the broker gave this message up, and it came by way of the dead letters."""

    @property
    def is_alive(self) -> bool:
        """Whether the channel that it came on is still open, so that an ack can reach the broker."""

    async def ack(self) -> None:
        """Let the broker forget the message.

        An ack for a channel that is gone is dropped: the broker delivers again. Never raises.
        """


class Publisher(Protocol):
    """Confirmed publishing."""

    async def publish(self, outgoing: Outgoing) -> None:
        """Return once the broker has confirmed `outgoing` and did not return it.

        Raises:
            PublishError: it was returned, refused, or not confirmed in time (30 s); it may be sent twice.
        """


class Clock(Protocol):
    """Time, so that tests can move it."""

    def now(self) -> datetime:
        """The time of day, UTC."""

    def monotonic(self) -> float:
        """Seconds of a clock that never jumps."""

    async def sleep(self, seconds: float) -> None: ...


class Memory(Protocol):
    """What this process knows of its own runs; asked and told by the store around each commit."""

    def recall(self, key: int, epoch: int) -> Holder:
        """Say what is known of the run of task `key` at `epoch`: HERE, HERE_ADRIFT or HERE_FORGOTTEN."""

    def remember(self, claim: Claim, delivery: Delivery) -> None:
        """Know the run of a claim from the moment that its commit is known."""

    def adopt(self, key: int, epoch: int, delivery: Delivery) -> None:
        """Let `delivery` take the place of the one that a run lost with its channel."""

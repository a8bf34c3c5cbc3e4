"""What a step owes the world: a message that waits in the outbox until the broker confirmed it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from broker_worker.message import Message, Properties, copy_properties

LONGEST_DELAY = timedelta(seconds=4096)  # the last rung; what waits longer waits in Postgres


class Kind(StrEnum):
    """Where a message goes; the exchange follows from it."""

    COPY = "copy"  # a work queue, through a delay queue where it has to wait
    DEAD_LETTER = "dead_letter"  # the dead-letter exchange
    REPLY = "reply"  # a queue that a publisher named in reply_to


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish.

    `routing_key` is a queue name of ours for a copy, `<queue>.<reason>.<task>`
    for a dead letter, and a queue of the publisher's for a reply.
    """

    kind: Kind
    routing_key: str
    properties: Properties
    body: bytes = field(repr=False)
    delay: timedelta = timedelta(0)  # copies only; from now on


def copy_outgoing(message: Message, *, epoch: int, attempt: int, delay: timedelta = timedelta(0)) -> Outgoing:
    """Build the publish of a task's current copy."""
    return Outgoing(
        kind=Kind.COPY,
        routing_key=message.task.queue,
        properties=copy_properties(message, epoch=epoch, attempt=attempt),
        body=message.body,
        delay=delay,
    )


@dataclass(frozen=True, slots=True)
class Owed:
    """A row of the outbox, taken to be published."""

    id: int
    outgoing: Outgoing

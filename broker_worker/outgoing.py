"""What a step owes the world: a message that waits in the outbox until the broker confirmed it."""

from __future__ import annotations

from dataclasses import field
from datetime import timedelta
from enum import StrEnum
from uuid import UUID, uuid5

from broker_worker.message import Message, Properties, copy_properties
from broker_worker.sending import SentEvent
from broker_worker.values import dataclass

EVENT_ID = "bw-event-id"
_NAMESPACE = UUID("b3f6d0a4-6a0c-4a53-8a54-3e1b7f0f2c95")
LONGEST_RUNG = timedelta(seconds=4096)  # the last rung; what waits longer waits in Postgres


class Kind(StrEnum):
    """Where a message goes; the exchange follows from it."""

    COPY = "copy"  # a work queue, through a delay queue where it has to wait
    DEAD_LETTER = "dead_letter"  # the dead-letter exchange
    REPLY = "reply"  # a queue that a publisher named in reply_to
    EVENT = "event"  # an exchange that a handler named


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish.

    `routing_key` is a queue name of ours for a copy, `<queue>.<reason>.<task>`
    for a dead letter, a queue of the publisher's for a reply, and the handler's
    own for an event.
    """

    kind: Kind
    routing_key: str
    properties: Properties
    body: bytes = field(repr=False)
    delay: timedelta = timedelta(0)  # copies only; from now on
    exchange: str | None = None  # events only; as it stands, without our prefix


def copy_outgoing(message: Message, *, epoch: int, attempt: int, delay: timedelta = timedelta(0)) -> Outgoing:
    """Build the publish of a task's current copy."""
    return Outgoing(
        kind=Kind.COPY,
        routing_key=message.task.queue,
        properties=copy_properties(message, epoch=epoch, attempt=attempt),
        body=message.body,
        delay=delay,
    )


def event_outgoing(event: SentEvent, *, sender: Message, key: int, epoch: int, position: int) -> Outgoing:
    """Build the publish of the event at `position` of what a run of `sender` sent.

    A crash between confirm and delete publishes it twice, each time under another AMQP
    message id; the header `bw-event-id` is the same, so that a consumer can tell a repeat.
    """
    seed = "\0".join((*sender.task, str(key), str(epoch), str(position)))
    return Outgoing(
        kind=Kind.EVENT,
        routing_key=event.routing_key,
        properties=Properties(
            content_type="application/json",
            correlation_id=sender.correlation_id,
            headers={**sender.inherited_headers, EVENT_ID: str(uuid5(_NAMESPACE, seed))},
        ),
        body=event.body,
        exchange=event.exchange,
    )


@dataclass(frozen=True, slots=True)
class Owed:
    """A row of the outbox, taken to be published."""

    id: int
    outgoing: Outgoing

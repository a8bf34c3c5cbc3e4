"""A message that can't be done, kept for a human, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid4, uuid5

from broker_worker.message import (
    ATTEMPT,
    EPOCH,
    MAX_HEADER_BYTES,
    TASK_ID,
    Message,
    Properties,
    TaskId,
    UntakenBody,
    headers_size,
    publisher_headers,
    tag,
    to_record,
    untag,
)
from broker_worker.outcome import Failure, Reason
from broker_worker.outgoing import Kind, Outgoing

LETTER_ID = "bw-dead-letter-id"
UNTAKEN = "untaken_body"
_NAMESPACE = UUID("6f0b6a0e-5d0c-4b52-9a0e-0c8f0f6f7d11")
_LONGEST_KEY = 255  # bytes, AMQP 0-9-1 section 4.2.5.3


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row of `dead_letters`. `record` is what its properties were, as JSON can hold it."""

    id: UUID
    queue: str
    name: str | None
    message_id: str | None
    reason: Reason
    failure: Failure
    body: bytes = field(repr=False)
    record: Mapping[str, object]
    attempt: int = 0
    epoch: int = 0
    task_key: int | None = None

    @property
    def is_published(self) -> bool:
        """Whether we send it to the dead-letter exchange. What we did not take RabbitMQ moves by itself."""
        return not isinstance(self.body, UntakenBody)


def letter_of_task(
    message: Message,
    *,
    reason: Reason,
    failure: Failure,
    attempt: int,
    epoch: int,
    task_key: int | None = None,
) -> DeadLetter:
    """The dead letter of a task at `epoch`: written twice, it is the same one."""
    seed = "\0".join((*message.task, str(epoch), reason))
    if reason is Reason.CONFLICT:  # the row stays with the other message
        seed += message.digest().hex()
    return DeadLetter(
        id=_id_of_untaken(message.task.queue, message.body) or uuid5(_NAMESPACE, seed),
        queue=message.task.queue,
        name=message.task.name,
        message_id=message.task.id,
        reason=reason,
        failure=failure,
        body=message.body,
        record=to_record(message) | _untaken(message.body),
        attempt=attempt,
        epoch=epoch,
        task_key=task_key,
    )


def letter_of_stranger(
    properties: Properties,
    body: bytes,
    *,
    queue: str,
    reason: Reason,
    failure: Failure,
    task: TaskId | None = None,
) -> DeadLetter:
    """The dead letter of a message that is no task: its identity can't be read, or is not ours.

    Nothing tells a redelivery of it from an equal message, so each time it is a new
    letter: two are better than none. Of a body that was not taken there is one letter
    wherever it turns up: the message itself is in RabbitMQ.
    """
    return DeadLetter(
        id=_id_of_untaken(queue, body) or uuid4(),
        queue=queue,
        name=task.name if task else properties.type,
        message_id=task.id if task else properties.message_id,
        reason=reason,
        failure=failure,
        body=body,
        record=properties_record(properties) | _untaken(body),
    )


def is_untaken(record: Mapping[str, object]) -> bool:
    """Say whether the body that belongs to a stored record was never taken from RabbitMQ."""
    return UNTAKEN in record


def _untaken(body: bytes) -> dict[str, object]:
    if not isinstance(body, UntakenBody):
        return {}
    return {UNTAKEN: {"bytes": body.size, "digest": body.digest.hex()}}


def _id_of_untaken(queue: str, body: bytes) -> UUID | None:
    if not isinstance(body, UntakenBody):
        return None
    return uuid5(_NAMESPACE, f"{queue}\0{body.letter_seed}")


def properties_record(properties: Properties) -> dict[str, object]:
    """Like `to_record`, for properties that break the contract."""
    return {
        "type": properties.type,
        "message_id": properties.message_id,
        "content_type": properties.content_type,
        "content_encoding": properties.content_encoding,
        "correlation_id": properties.correlation_id,
        "reply_to": properties.reply_to,
        "expiration": properties.expiration,
        "published_at": tag(properties.timestamp),
        "app_id": properties.app_id,
        "headers": {name: tag(value) for name, value in publisher_headers(properties.headers).items()},
        "broken": properties.broken,
    }


def letter_properties(letter: DeadLetter, *, worker: str, failed_at: datetime) -> Properties:
    """What a dead letter travels with, for tools that read it from RabbitMQ."""
    headers: dict[str, object] = {
        LETTER_ID: str(letter.id),
        EPOCH: letter.epoch,
        ATTEMPT: letter.attempt,
        "bw-reason": str(letter.reason),
        "bw-error-type": letter.failure.error_type,
        "bw-error-message": letter.failure.message,
        "bw-fingerprint": letter.failure.fingerprint or "",
        "bw-failed-at": failed_at.isoformat(),
        "bw-worker": worker,
    }
    if letter.message_id is not None:
        headers[TASK_ID] = letter.message_id
    carried = carried_properties(letter.record)
    # too many to be sent at all: the database has them
    fitting = carried.headers if headers_size(publisher_headers(carried.headers)) <= MAX_HEADER_BYTES else {}
    return Properties(
        type=letter.name,
        content_type=carried.content_type,
        content_encoding=carried.content_encoding,
        correlation_id=carried.correlation_id,
        reply_to=carried.reply_to,
        app_id=carried.app_id,
        timestamp=carried.timestamp,
        headers={**fitting, **headers},
    )


def letter_outgoing(letter: DeadLetter, *, worker: str, failed_at: datetime) -> Outgoing:
    """The publish that a dead letter owes the dead-letter exchange."""
    return Outgoing(
        kind=Kind.DEAD_LETTER,
        routing_key=letter_key(letter),
        properties=letter_properties(letter, worker=worker, failed_at=failed_at),
        body=letter.body,
    )


def letter_key(letter: DeadLetter) -> str:
    """Build the routing key `<queue>.<reason>.<task>`, cut to what AMQP and Postgres can carry."""
    text = f"{letter.queue}.{letter.reason}.{letter.name or 'unknown'}".replace("\0", "\ufffd")
    key = text.encode("utf-8", "replace")
    return key[:_LONGEST_KEY].decode("utf-8", "ignore")


def carried_properties(record: Mapping[str, object]) -> Properties:
    """Rebuild the publisher's own properties from a stored record."""

    def text(name: str) -> str | None:
        value = record.get(name)
        return value if isinstance(value, str) else None

    headers = record.get("headers")
    published_at = untag(record.get("published_at"))
    return Properties(
        type=text("type"),
        message_id=text("message_id"),
        content_type=text("content_type"),
        content_encoding=text("content_encoding"),
        correlation_id=text("correlation_id"),
        reply_to=text("reply_to"),
        expiration=text("expiration"),
        app_id=text("app_id"),
        timestamp=published_at if isinstance(published_at, datetime) else None,
        headers={k: untag(v) for k, v in headers.items()} if isinstance(headers, Mapping) else {},
    )

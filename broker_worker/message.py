"""The message contract: what a publisher sends, and how this package reads and copies it.

The body is the payload; everything else rides in AMQP properties. `decode`
turns one arrival into a `Message`, or says why it can't. Nothing here does
I/O, and nothing here knows an AMQP library.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from broker_worker.notation import QUEUE_NAME
from broker_worker.outcome import Failure, Reason
from broker_worker.values import dataclass

MAX_ID_LENGTH = 200  # characters; AMQP's own limit for a short string is 255 bytes
MAX_NAME_LENGTH = 200  # characters
MAX_HEADER_BYTES = 64 * 1024  # a frame holds 128 KiB by default; copies and dead letters add their own
HEADER_OVERHEAD = 6  # bytes of a header beside name and value: a length of either, and a type
MAX_EPOCH = 2**31 - 1  # a Postgres integer
TEXT_ENCODINGS = frozenset({"", "utf-8", "utf8", "identity"})
INHERITED = ("traceparent", "tracestate", "tenant-id")  # by what a task sends
TRACEPARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
TASK_ID = "bw-task-id"
TASK_TYPE = "task-type"  # the name, where a publisher can't set the property type
EPOCH = "bw-epoch"
ATTEMPT = "bw-attempt"
_IDENTIFYING = (TASK_ID, "task-id", TASK_TYPE)  # headers that RabbitMQ leaves alone
NOT_AFTER = "not-after"
DELIVER_AT = "deliver-at"
NOT_HEADERS = frozenset({"cc", "bcc", NOT_AFTER, DELIVER_AT})  # they route, or are fields of a message

Scalar = str | int | float | bool | bytes | datetime | Decimal | None


@dataclass(frozen=True, slots=True)
class Properties:
    """The AMQP 0-9-1 basic properties that matter here, free of any client library.

    `broken` says why the wire's own encoding of them could not be read (an
    impossible timestamp, a nested header bomb); the other fields then hold
    what could be.
    """

    type: str | None = None
    message_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    timestamp: datetime | None = None
    app_id: str | None = None
    user_id: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    broken: str | None = None


class TaskId(NamedTuple):
    """What makes two messages the same task."""

    queue: str
    name: str
    id: str


@dataclass(frozen=True, slots=True)
class Message:
    """One task as its publisher sent it: the same on every attempt."""

    task: TaskId
    body: bytes = field(repr=False)
    content_type: str | None = None
    content_encoding: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    app_id: str | None = None
    user_id: str | None = None
    published_at: datetime | None = None
    not_after: datetime | None = None
    deliver_at: datetime | None = None
    headers: Mapping[str, Scalar] = field(default_factory=dict)
    epoch: int = 0  # 0: from a publisher; else the epoch of the copy

    @property
    def media_type(self) -> str:
        """The content type without parameters, lower case; JSON where none was given."""
        return media_type(self.content_type)

    @property
    def trace_id(self) -> str | None:
        """The trace that this task belongs to, from a W3C `traceparent` header."""
        parent = self.headers.get("traceparent")
        if not isinstance(parent, str):
            return None
        found = TRACEPARENT.fullmatch(parent)
        return found[1] if found else None

    @property
    def inherited_headers(self) -> Mapping[str, Scalar]:
        """What a task that this one sends belongs to as well: the trace, and the tenant."""
        return {name: self.headers[name] for name in INHERITED if name in self.headers}

    def digest(self) -> bytes:
        """Tell two messages with one identity apart: SHA-256 over media type and body."""
        if isinstance(self.body, UntakenBody):
            return self.body.digest
        digest = begin_digest(self.content_type)
        digest.update(self.body)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Unidentified:
    """A message without an id: it has to be stamped before it can become a task."""

    name: str


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A message that breaks the contract; `message` where at least its identity could be read."""

    reason: Reason
    failure: Failure
    message: Message | None = None


class UntakenBody(bytes):
    """Stands for a body beyond the limit: empty, because none of it was kept, and never sent on.

    RabbitMQ still has it. `size` is what the content header announced; `digest` is that of
    its `Message`, reckoned while the bytes passed; `letter_seed` is the same each time that
    this message is delivered, wherever it has been dead-lettered to meanwhile.
    """

    size: int
    digest: bytes
    letter_seed: str

    @classmethod
    def of(cls, properties: Properties, *, size: int, digest: bytes) -> UntakenBody:
        """Describe the body that came with `properties`."""
        found = cls()
        named = (properties.type, properties.message_id, *map(properties.headers.get, _IDENTIFYING))
        found.size, found.digest = size, digest
        found.letter_seed = "\0".join(("untaken", *map(repr, named), digest.hex()))
        return found


def begin_digest(content_type: str | None) -> hashlib._Hash:
    """Begin what tells two messages with one identity apart; the body's bytes come next."""
    return hashlib.sha256(media_type(content_type).encode(errors="replace") + b"\0")


class ContractError(ValueError):
    """A message breaks the contract."""

    reason = Reason.MALFORMED


class OversizeError(ContractError):
    """A message is larger than allowed."""

    reason = Reason.OVERSIZE


def decode(
    properties: Properties,
    body: bytes,
    *,
    queue: str,
    now: datetime,
    max_body_bytes: int,
    default_name: str | None = None,
) -> Message | Unidentified | Undecodable:
    """Read one arrival of `queue` by the contract.

    `now` is when it arrived: an `expiration` without a `timestamp` counts from there.
    The body is not parsed here; a handler's payload type does that.
    """
    if properties.broken is not None:
        return _undecodable(Reason.MALFORMED, properties.broken)
    try:
        name = _name(properties, default_name)
        task_id = _task_id(properties)
    except ContractError as error:
        return _undecodable(Reason.MALFORMED, str(error))
    headers = publisher_headers(properties.headers) if properties.headers else {}
    task = TaskId(queue, name, task_id) if task_id else None
    try:
        _check_size(body, headers, max_body_bytes)
        _check_encoding(properties)
        not_after, deliver_at = _times(properties, now)
    except ContractError as error:
        bare = _message(task, properties, headers, body) if task else None
        return _undecodable(error.reason, str(error), bare)
    if task is None:
        return Unidentified(name)
    return _message(task, properties, headers, body, not_after=not_after, deliver_at=deliver_at)


def _message(
    task: TaskId,
    properties: Properties,
    headers: Mapping[str, Scalar],
    body: bytes,
    *,
    not_after: datetime | None = None,
    deliver_at: datetime | None = None,
) -> Message:
    return Message(
        task=task,
        body=body,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        app_id=properties.app_id,
        user_id=properties.user_id,
        published_at=properties.timestamp,
        not_after=not_after,
        deliver_at=deliver_at,
        headers=headers,
        epoch=read_epoch(properties),
    )


def copy_properties(message: Message, *, epoch: int, attempt: int) -> Properties:
    """Build what a copy of `message` travels with: an allow-list, never the incoming properties."""
    headers = {**message.headers, **_time_headers(message.not_after, message.deliver_at)}
    headers |= {TASK_ID: message.task.id, EPOCH: epoch, ATTEMPT: attempt}
    return Properties(
        type=message.task.name,
        content_type=message.content_type,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        app_id=message.app_id,
        timestamp=message.published_at,
        headers=headers,
    )


def stamped_properties(
    properties: Properties, *, name: str, task_id: str, now: datetime, is_expired: bool = False
) -> Properties:
    """Build what a message without an id is republished with, under the fresh `task_id`.

    `is_expired`: the broker took its `expiration` away when the time was over.
    """
    not_after, deliver_at = _times(properties, now)
    not_after = now if is_expired else not_after
    headers = {**publisher_headers(properties.headers), **_time_headers(not_after, deliver_at)}
    headers |= {TASK_ID: task_id, EPOCH: 0, ATTEMPT: 0}
    return Properties(
        type=name,
        content_type=properties.content_type,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        app_id=properties.app_id,
        timestamp=properties.timestamp,
        headers=headers,
    )


def _time_headers(not_after: datetime | None, deliver_at: datetime | None) -> dict[str, Scalar]:
    moments = {NOT_AFTER: not_after, DELIVER_AT: deliver_at}
    return {name: moment.isoformat() for name, moment in moments.items() if moment is not None}


def publisher_headers(headers: Mapping[str, object]) -> dict[str, Scalar]:
    """Keep the publisher's own scalar headers: no `x-*`, no `bw-*`, nothing that routes, no times."""
    return {
        name: value
        for name, value in headers.items()
        if isinstance(value, Scalar)
        and not name.startswith(("x-", "bw-"))
        and name.lower() not in NOT_HEADERS
    }


def _check_size(body: bytes, headers: Mapping[str, Scalar], max_body_bytes: int) -> None:
    if isinstance(body, UntakenBody):
        raise OversizeError(
            f"the body has {body.size} bytes, allowed are {max_body_bytes}: RabbitMQ has kept it"
        )
    if len(body) > max_body_bytes:
        raise OversizeError(f"the body has {len(body)} bytes, allowed are {max_body_bytes}")
    if headers and (size := headers_size(headers)) > MAX_HEADER_BYTES:
        raise OversizeError(f"the headers have {size} bytes, allowed are {MAX_HEADER_BYTES}")


def headers_size(headers: Mapping[str, Scalar]) -> int:
    """Estimate the bytes of a publisher's own headers in a copy, never too low."""
    return sum(HEADER_OVERHEAD + len(name) * 4 + _size(value) for name, value in headers.items())


def _size(value: Scalar) -> int:
    match value:
        case str():
            return len(value.encode("utf-8", "replace"))
        case bytes():
            return len(value)
        case _:
            return 8


@lru_cache(64)
def media_type(content_type: str | None) -> str:
    """Strip a content type of its parameters; `application/json` where there is none."""
    return (content_type or "").partition(";")[0].strip().lower() or "application/json"


def is_json(media: str) -> bool:
    """Say whether a media type's bodies are JSON."""
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


def to_record(message: Message) -> dict[str, object]:
    """Everything of a message but its body and identity, as JSON can hold it."""
    return {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        "app_id": message.app_id,
        "user_id": message.user_id,
        "published_at": tag(message.published_at),
        "not_after": tag(message.not_after),
        "deliver_at": tag(message.deliver_at),
        "headers": {name: tag(value) for name, value in message.headers.items()},
    }


def from_record(task: TaskId, body: bytes, record: Mapping[str, object], *, epoch: int) -> Message:
    """Rebuild a message from `to_record`."""
    headers = record.get("headers") or {}
    assert isinstance(headers, Mapping)  # noqa: S101 - written by to_record
    fields: dict[str, object] = {name: untag(record.get(name)) for name in _RECORDED}
    return Message(
        task=task,
        body=body,
        headers={name: untag(value) for name, value in headers.items()},
        epoch=epoch,
        **fields,  # type: ignore[arg-type]  # the names and types of to_record
    )


_RECORDED = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "app_id",
    "user_id",
    "published_at",
    "not_after",
    "deliver_at",
)


def tag(value: Scalar) -> object:
    """Make a header value something that JSON can hold without losing its type."""
    match value:
        case datetime():
            return {"time": value.isoformat()}
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case Decimal():
            return {"decimal": str(value)}
        case float() if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN
            return {"float": repr(value)}
        case _:
            return value


def untag(value: object) -> Scalar:
    """Undo `tag`."""
    match value:
        case {"time": str(text)}:
            return datetime.fromisoformat(text)
        case {"bytes": str(text)}:
            return base64.b64decode(text)
        case {"decimal": str(text)}:
            return Decimal(text)
        case {"float": str(text)}:
            return float(text)
        case str() | int() | float() | bool() | None:
            return value
        case _:
            raise ContractError(f"a stored property is of an unknown kind: {type(value).__name__}")


def _undecodable(reason: Reason, detail: str, message: Message | None = None) -> Undecodable:
    return Undecodable(reason, Failure(error_type="ContractError", message=detail), message)


def _name(properties: Properties, default: str | None) -> str:
    name = properties.type or properties.headers.get(TASK_TYPE) or default
    if not name:
        raise ContractError(f"no task name: neither the property type nor the header {TASK_TYPE} is set")
    return _text(name, what="the task name", longest=MAX_NAME_LENGTH)


def _task_id(properties: Properties) -> str | None:
    headers = properties.headers
    found = headers.get(TASK_ID) or properties.message_id or headers.get("task-id")
    if found is None or found == "":
        return None
    return _text(found, what="the task id", longest=MAX_ID_LENGTH)


def check_identity(task: TaskId) -> None:
    """See that a task that we send ourselves can be read where it arrives.

    Raises:
        ContractError: its name, id or queue can't be.
    """
    if not QUEUE_NAME.fullmatch(task.queue):
        raise ContractError(f"{task.queue!r} is no queue's name: 1 to 100 letters, digits, - and _")
    for value, what, longest in ((task.name, "name", MAX_NAME_LENGTH), (task.id, "id", MAX_ID_LENGTH)):
        if not _text(value, what=f"the task {what}", longest=longest).strip():
            raise ContractError(f"the task {what} is empty")


def _text(value: object, *, what: str, longest: int) -> str:
    if not isinstance(value, str):
        raise ContractError(f"{what} is not text but {type(value).__name__}")
    if len(value) > longest:
        raise ContractError(f"{what} has {len(value)} characters, allowed are {longest}")
    if "\0" in value or not _encodes(value):
        raise ContractError(f"{what} holds a character that can't be stored")
    return value


def _encodes(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_encoding(properties: Properties) -> None:
    encoding = (properties.content_encoding or "").strip().lower()
    if encoding not in TEXT_ENCODINGS:
        raise ContractError(f"content_encoding {encoding[:40]!r} is not supported")


def read_epoch(properties: Properties) -> int:
    """Read the epoch of a copy; 0 of a publisher's message."""
    value = properties.headers.get(EPOCH)
    if type(value) is not int:  # a bool is an int, too
        return 0
    return min(max(value, 0), MAX_EPOCH)


def _times(properties: Properties, now: datetime) -> tuple[datetime | None, datetime | None]:
    not_after = _time(properties.headers.get(NOT_AFTER), NOT_AFTER)
    if properties.expiration is not None:
        published_at = properties.timestamp or now
        # an AMQP timestamp has whole seconds: one more makes up for what it cut off
        expires = _later(published_at, _milliseconds(properties.expiration) + timedelta(seconds=1))
        not_after = min(not_after, expires) if not_after else expires
    return not_after, _time(properties.headers.get(DELIVER_AT), DELIVER_AT)


def _milliseconds(expiration: str) -> timedelta:
    try:
        return timedelta(milliseconds=int(expiration))
    except (ValueError, OverflowError) as error:
        raise ContractError(f"expiration {expiration[:40]!r} is not a number of milliseconds") from error


def _later(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _time(value: object, header: str) -> datetime | None:
    """Read a moment: an AMQP timestamp, ISO 8601 text, or Unix seconds as a number or text."""
    if value is None:
        return None
    try:
        return _moment(value)
    except (ValueError, OverflowError, OSError, TypeError) as error:
        raise ContractError(f"header {header} is not a time") from error


def _moment(value: object) -> datetime:
    match value:
        case datetime():
            moment = value
        case bool():
            raise ValueError(value)
        case int() | float() | Decimal():
            moment = datetime.fromtimestamp(float(value), tz=UTC)
        case str() if value.strip().isascii() and value.strip().replace(".", "", 1).isdigit():
            moment = datetime.fromtimestamp(float(value), tz=UTC)
        case str():
            moment = datetime.fromisoformat(value)
        case _:
            raise TypeError(value)
    # raises at the ends of the calendar, where there is no such moment in UTC and Postgres could not keep it
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)

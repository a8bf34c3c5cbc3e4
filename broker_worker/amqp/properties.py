"""Our Properties from and to the wire.

Encoding is our own for header values: pamqp sends every float with 32 bits only, so
that a copy would differ from its original, and can't send `bytes`. It happens before
anything reaches the connection: what can't be encoded harms nobody else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from secrets import token_hex

from pamqp import commands, encode
from pamqp.header import ContentHeader

from broker_worker.amqp.quick_tables import read_moment, read_quickly
from broker_worker.amqp.safe_decoding import BrokenContentHeader, decode_header
from broker_worker.errors import UnpublishableError
from broker_worker.message import TASK_TYPE, Properties

SHORT = 255  # bytes of a short string, which names, keys and most properties are
PERSISTENT = 2
FLAGS_AT = 12  # bytes: class, weight and body size come before
UNCOMMON = 0b111  # more flags to come, a cluster id, a bit that has no meaning
SECONDS = struct.Struct(">Q")
FLAGS = struct.Struct(">H")
LENGTH = struct.Struct(">I")
FIELDS = (  # in the order of the wire
    (1 << 15, "content_type"),
    (1 << 14, "content_encoding"),
    (1 << 13, "headers"),
    (1 << 12, "octet"),  # delivery mode
    (1 << 11, "octet"),  # priority
    (1 << 10, "correlation_id"),
    (1 << 9, "reply_to"),
    (1 << 8, "expiration"),
    (1 << 7, "message_id"),
    (1 << 6, "timestamp"),
    (1 << 5, "type"),
    (1 << 4, "user_id"),
    (1 << 3, "app_id"),
)
Value = str | int | datetime | Mapping[str, object] | None
PROCESS = token_hex(8)  # begins the id of each publish of ours

_numbers = count()


class EncodedProperties(commands.Basic.Properties):
    """Properties that are encoded already; the library only needs their `message_id`."""

    encoded: bytes

    def marshal(self) -> bytes:
        """Return what was encoded."""
        return self.encoded


def read_properties(header: ContentHeader) -> Properties:
    """Map what arrived."""
    found = header.properties
    return Properties(
        type=found.message_type,
        message_id=found.message_id,
        content_type=found.content_type,
        content_encoding=found.content_encoding,
        correlation_id=found.correlation_id,
        reply_to=found.reply_to,
        expiration=found.expiration,
        timestamp=found.timestamp,
        app_id=found.app_id,
        user_id=found.user_id,
        headers={
            name: bytes(value) if isinstance(value, bytearray) else value
            for name, value in (found.headers or {}).items()
        },
        broken=header.broken if isinstance(header, BrokenContentHeader) else None,
    )


def decode_properties(header: bytes) -> Properties:
    """Read the payload of a content header, whatever is in it.

    What nearly all messages have is read at once; the rest, and all that looks wrong, by
    `safe_decoding`, which takes several times as long.
    """
    try:
        found = _decode_common(header)
    except (LookupError, ValueError, OverflowError, OSError, struct.error):
        found = None  # a UnicodeDecodeError is a ValueError
    return found if found is not None else read_properties(decode_header(header))


def _decode_common(header: bytes) -> Properties | None:
    """Read properties that are all as they should be; nothing where they may not be."""
    flags, at = header[FLAGS_AT] << 8 | header[FLAGS_AT + 1], FLAGS_AT + 2
    if flags & UNCOMMON:
        return None
    found: dict[str, str] = {}
    timestamp: datetime | None = None
    headers: dict[str, object] = {}
    for name in _fields(flags):
        if name == "headers":
            at, headers = read_quickly(header, at)
        elif name == "timestamp":
            timestamp, at = read_moment(header, at), at + SECONDS.size
        elif name == "octet":
            at += 1
        else:
            start, at = at + 1, at + 1 + header[at]
            found[name] = header[start:at].decode()
    if at != len(header):
        return None
    return Properties(**found, timestamp=timestamp, headers=headers)


@lru_cache(64)
def _fields(flags: int) -> tuple[str, ...]:
    """Return which fields there are, in the order of the wire. A publisher's messages have the same."""
    return tuple(name for flag, name in FIELDS if flags & flag)


def encode_properties(properties: Properties) -> EncodedProperties:
    """Build what is sent: persistent, under a fresh AMQP message id, never with a user id.

    The id is this publish's own, never the task's: the library matches returns by it.

    Raises:
        UnpublishableError: a value can't be sent by AMQP; the text names it.
    """
    message_id = f"{PROCESS}{next(_numbers):016x}"
    headers, short_type = properties.headers, properties.type
    if short_type is not None and len(short_type.encode(errors="replace")) > SHORT:
        headers, short_type = {**headers, TASK_TYPE: short_type}, None
    encoded = EncodedProperties(message_id=message_id)
    encoded.encoded = _marshal(
        (
            (1 << 15, "content_type", properties.content_type),
            (1 << 14, "content_encoding", properties.content_encoding),
            (1 << 13, "headers", headers),
            (1 << 12, "delivery_mode", PERSISTENT),
            (1 << 10, "correlation_id", properties.correlation_id),
            (1 << 9, "reply_to", properties.reply_to),
            (1 << 8, "expiration", properties.expiration),
            (1 << 7, "message_id", message_id),
            (1 << 6, "timestamp", properties.timestamp),
            (1 << 5, "type", short_type),
            (1 << 3, "app_id", properties.app_id),
        )
    )
    return encoded


def short(text: str) -> str:
    """Cut `text` to what a routing key may hold, between two characters."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= SHORT else encoded[:SHORT].decode(errors="ignore")


def _marshal(fields: Iterable[tuple[int, str, Value]]) -> bytes:
    """Encode what is set of `fields`: flag, name and value of each, in the order of the wire."""
    flags, parts = 0, [b""]
    for flag, name, value in fields:
        if not value:
            continue
        flags |= flag
        try:
            match value:
                case str():
                    encoded = value.encode()
                    parts.append(bytes((len(encoded),)) + encoded)
                case int():
                    parts.append(bytes((value,)))
                case datetime():
                    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
                    parts.append(SECONDS.pack(int(aware.timestamp())))
                case _:
                    parts.append(_table(value))
        except (TypeError, ValueError, struct.error, OverflowError) as error:
            raise UnpublishableError(f"AMQP can't carry the property {name}: {error}") from error
    parts[0] = FLAGS.pack(flags)
    return b"".join(parts)


def _table(headers: Mapping[str, object]) -> bytes:
    output = b"".join(_key(name) + _field(name, value) for name, value in headers.items())
    return LENGTH.pack(len(output)) + output


@lru_cache(500)  # our own and a publisher's: few
def _key(name: str) -> bytes:
    key = short(name).encode(errors="replace")
    return bytes((len(key),)) + key


def _field(name: str, value: object) -> bytes:
    try:
        match value:
            case str():
                text = value.encode()
                return b"S" + LENGTH.pack(len(text)) + text
            case float():
                return b"d" + struct.pack(">d", value)
            case bytes():
                return b"x" + LENGTH.pack(len(value)) + value
            case datetime():
                return b"T" + struct.pack(">Q", int(value.timestamp()))
            case _:
                return encode.encode_table_value(value)  # type: ignore[arg-type]  # raises TypeError for others
    except (TypeError, ValueError, AttributeError, struct.error, OverflowError, RecursionError) as error:
        raise UnpublishableError(
            f"AMQP can't carry the header {name[:80]!r}: {type(error).__name__}: {error}"
        ) from error

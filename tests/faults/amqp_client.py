"""A connection to RabbitMQ, written by hand on a blocking socket: it shares nothing with the daemon."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tests.faults.amqp_header import Header, read_header
from tests.faults.amqp_header import short as read_short

PREAMBLE = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME, HEADER_FRAME, BODY_FRAME = 1, 2, 3
FRAME_END = b"\xce"
BASIC = 60
START_OK, TUNE, TUNE_OK, OPEN, CLOSE = (10, 11), (10, 30), (10, 31), (10, 40), (10, 50)
CHANNEL_OPEN, CHANNEL_CLOSE, SELECT, PUBLISH = (20, 10), (20, 40), (85, 10), (60, 40)
RETURN, ACK, NACK = (60, 50), (60, 80), (60, 120)
GET, GET_OK = (60, 70), (60, 71)
MANDATORY = 1
# the bits of the properties, in the order in which they travel
CONTENT_TYPE, HEADERS, DELIVERY_MODE, CORRELATION_ID, REPLY_TO = 15, 13, 12, 10, 9
MESSAGE_ID, TIMESTAMP, TYPE = 7, 6, 5
SECONDS_TO_OPEN = 10.0
CHUNK = 65_536


@dataclass(slots=True)
class Answer:
    """What the broker says of what was published: `ok` or `fail`, and the numbers."""

    kind: str
    tags: list[int]


@dataclass(slots=True)
class Properties:
    """Those of a message; `raw` headers are the bytes of a whole table, its length included."""

    type: str
    message_id: str
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    raw_headers: bytes = b""
    timestamp: int | None = None
    reply_to: str = ""  # the correlation id is then the message's own


class Connection:
    """One connection with one channel that confirms."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 5672), SECONDS_TO_OPEN)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""
        self.published = 0
        self._unanswered: set[int] = set()
        self._open(
            unquote(parts.username or ""), unquote(parts.password or ""), unquote(parts.path[1:]) or "/"
        )

    def publish(self, exchange: str, routing_key: str, properties: Properties, body: bytes) -> int:
        """Send a persistent, mandatory message; return the number by which it will be answered.

        Raises:
            OSError: the connection is lost, or takes no bytes.
        """
        method = b"\0\0" + short(exchange.encode()) + short(routing_key.encode()) + bytes((MANDATORY,))
        frames = [call(PUBLISH, method, channel=1), frame(HEADER_FRAME, 1, header(properties, len(body)))]
        if body:
            frames.append(frame(BODY_FRAME, 1, body))
        self.published += 1
        self._unanswered.add(self.published)
        self._socket.sendall(b"".join(frames))
        return self.published

    def answers(self, seconds: float) -> Iterator[Answer]:
        """Give what the broker has answered, waiting at most so long for the first bytes.

        Raises:
            OSError: the connection is lost.
        """
        if not select.select([self._socket], [], [], seconds)[0]:
            return
        data = self._socket.recv(CHUNK)
        if not data:
            raise ConnectionResetError("the broker closed the connection")
        self._read += data
        for kind, payload in self._frames():
            if kind == METHOD_FRAME:
                yield from self._answer(struct.unpack_from(">HH", payload), payload[4:])

    def get_all(self, queue: str) -> Iterator[tuple[Header, str, bytes]]:
        """Take what is in a queue, one message after the other: header, routing key, body."""
        while True:
            self._socket.sendall(call(GET, b"\0\0" + short(queue.encode()) + b"\1", channel=1))
            _, payload = self._next()
            method, arguments = struct.unpack_from(">HH", payload), payload[4:]
            if method != GET_OK:
                return
            _, at = read_short(arguments, 9)
            key, _ = read_short(arguments, at)
            kind, payload = self._next()
            header = read_header(frame(kind, 1, payload))
            body = b""
            while len(body) < header.body_size:
                body += self._next()[1]
            yield header, key, body

    def close(self) -> None:
        self._socket.close()

    def _answer(self, method: tuple[int, ...], arguments: bytes) -> Iterator[Answer]:
        if method in {CLOSE, CHANNEL_CLOSE}:
            raise ConnectionResetError(f"the broker closes: {arguments[3:]!r}")
        if method == RETURN:  # with an alternate exchange that exists nothing is
            raise ConnectionResetError(f"a message was returned: {arguments!r}")
        if method not in {ACK, NACK}:
            return
        (tag,) = struct.unpack_from(">Q", arguments)
        is_multiple = arguments[8] & 1
        tags = sorted(one for one in self._unanswered if one == tag or (is_multiple and one < tag))
        self._unanswered.difference_update(tags)
        yield Answer("ok" if method == ACK else "fail", tags)

    def _open(self, user: str, password: str, vhost: str) -> None:
        self._socket.sendall(PREAMBLE)
        self._next()
        response = f"\0{user}\0{password}".encode()
        arguments = struct.pack(">I", 0) + short(b"PLAIN") + long(response) + short(b"en_US")
        self._socket.sendall(call(START_OK, arguments))
        self._next()
        self._socket.sendall(call(TUNE_OK, struct.pack(">HIH", 10, 131_072, 0)))
        self._socket.sendall(call(OPEN, short(vhost.encode()) + short(b"") + b"\0"))
        self._next()
        for method in (CHANNEL_OPEN, SELECT):
            self._socket.sendall(call(method, b"\0", channel=1))
            self._next()

    def _next(self) -> tuple[int, bytes]:
        """Wait for one frame: its type and what it holds."""
        deadline = time.monotonic() + SECONDS_TO_OPEN
        while time.monotonic() < deadline:
            for each in self._frames():
                return each
            data = self._socket.recv(CHUNK)
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            self._read += data
        raise TimeoutError

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while len(self._read) >= 7:
            kind, _, size = struct.unpack_from(">BHI", self._read)
            if len(self._read) < 8 + size:
                return
            payload, self._read = self._read[7 : 7 + size], self._read[8 + size :]
            yield kind, payload


def header(properties: Properties, size: int) -> bytes:
    """The content header of a message."""
    flags = 0
    values: list[bytes] = []
    table = properties.raw_headers or long(
        b"".join(
            short(name.encode()) + b"S" + long(value.encode()) for name, value in properties.headers.items()
        )
    )
    timestamp = None if properties.timestamp is None else struct.pack(">Q", properties.timestamp)
    for bit, value in (
        (CONTENT_TYPE, short(properties.content_type.encode()) if properties.content_type else None),
        (HEADERS, table),
        (DELIVERY_MODE, b"\x02"),
        (CORRELATION_ID, short(properties.message_id.encode()) if properties.reply_to else None),
        (REPLY_TO, short(properties.reply_to.encode()) if properties.reply_to else None),
        (MESSAGE_ID, short(properties.message_id.encode()) if properties.message_id else None),
        (TIMESTAMP, timestamp),
        (TYPE, short(properties.type.encode()) if properties.type else None),
    ):
        if value is not None:
            flags |= 1 << bit
            values.append(value)
    return struct.pack(">HHQH", BASIC, 0, size, flags) + b"".join(values)


def call(method: tuple[int, int], arguments: bytes, *, channel: int = 0) -> bytes:
    """A frame that calls a method."""
    return frame(METHOD_FRAME, channel, struct.pack(">HH", *method) + arguments)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END


def short(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def long(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value

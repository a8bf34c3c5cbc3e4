"""Deliveries, taken out of the byte stream before the library sees it.

For each frame aiormq awaits three reads, builds an object field by field, passes it
through a queue and wakes a task: for a small message several times what the rest of its
reception costs. Here whatever has arrived is cut into frames at once, and the three
frames of a delivery (AMQP 0-9-1, section 4.2.6) become one call. Every other frame, and
all that is no frame at all, goes on to aiormq as it came.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import NamedTuple

from aiormq.exceptions import InvalidFrameError
from pamqp import commands, constants
from pamqp.heartbeat import Heartbeat

from broker_worker.amqp.properties import decode_properties
from broker_worker.amqp.safe_decoding import FRAME
from broker_worker.message import UntakenBody, begin_digest

CHUNK = 256 * 1024  # bytes at most that are asked of the socket's buffer at once
OVERHEAD = FRAME.size + 1  # bytes of a frame that are no payload
KINDS = frozenset(
    {constants.FRAME_METHOD, constants.FRAME_HEADER, constants.FRAME_BODY, constants.FRAME_HEARTBEAT}
)
DELIVER = struct.pack(">I", commands.Basic.Deliver.index)
BODY_SIZE = struct.Struct(">Q")
SHORTEST_HEADER = 14  # bytes of a content header: class, weight, body size, flags
SIZE_AT = 4  # where a content header has it: after class and weight
TAG = struct.Struct(">QB")  # delivery tag, redelivered
SIGN_OF_LIFE = Heartbeat().marshal()


class Delivered(NamedTuple):
    """One delivery as the wire has it."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    header: bytes  # the payload of the content header
    body: bytes


Take = Callable[[Delivered], None]


class DeliveryStream:
    """Reads for aiormq what is not for a consumer of ours; quacks like the stream reader below it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._content_by_channel: dict[int, _Content] = {}
        self._cut = b""  # the beginning of a frame whose rest has not come yet
        self._rest = bytearray()  # what the library has still to read
        self._is_plain = False  # not, or no longer, a stream of frames
        self._overhear: Callable[[bytes], None] | None = None
        self.reads = 0  # how often something came: whoever sees it stand still knows of the silence

    def overhear(self, look: Callable[[bytes], None]) -> None:
        """Show `look` each frame of channel 0, what the broker says of the connection; it must not raise."""
        self._overhear = look

    def subscribe(self, channel: int, take: Take, *, largest: int | None = None) -> None:
        """Call `take` with each delivery on `channel`; it must not raise.

        Of a body that is announced with more than `largest` bytes nothing is kept.
        """
        self._content_by_channel[channel] = _Content(take, largest)

    def is_receiving(self, channel: int) -> bool:
        """Whether a delivery on `channel` has begun to come, and is not all there."""
        content = self._content_by_channel.get(channel)
        return content is not None and content.is_begun

    def unsubscribe(self, channel: int, take: Take) -> None:
        """Undo `subscribe`, unless somebody else has subscribed the channel's number since."""
        content = self._content_by_channel.get(channel)
        if content is not None and content.take is take:
            del self._content_by_channel[channel]

    def at_eof(self) -> bool:
        """Whether nothing can be read any more."""
        return not self._rest and not self._cut and self._reader.at_eof()

    async def readexactly(self, count: int) -> bytes:
        """Read `count` bytes of what is left for the library."""
        while len(self._rest) < count:
            await self._receive(count)
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken

    async def read(self) -> bytes:
        """Read to the end of the stream. aiormq does so where the peer speaks no AMQP."""
        self._is_plain = True
        taken = bytes(self._rest) + self._cut + await self._reader.read()
        self._rest.clear()
        self._cut = b""
        return taken

    async def _receive(self, wanted: int) -> None:
        data = await self._reader.read(CHUNK)
        if not data:
            raise asyncio.IncompleteReadError(bytes(self._rest) + self._cut, wanted)
        self.reads += 1
        self._split(self._cut + data if self._cut else data)

    def _split(self, data: bytes) -> None:
        """Cut `data` into frames and deal them out; an unfinished one waits for its rest."""
        at, is_taken = 0, False
        while (after := self._end_of_frame(data, at)) is not None:
            kind, channel, _ = FRAME.unpack_from(data, at)
            content = self._content_by_channel.get(channel)
            if content is not None and content.add(kind, data, at + FRAME.size, after - 1):
                is_taken = True
            else:
                self._rest += data[at:after]
                if channel == 0 and self._overhear is not None:
                    self._overhear(data[at + FRAME.size : after - 1])
            at = after
        self._cut = data[at:]
        if self._is_plain:
            self._rest += self._cut
            self._cut = b""
        elif is_taken or (self._overhear is not None and not self._rest):
            # aiormq has to know that the peer is alive: a busy broker sends no heartbeats, and one frame may
            # take longer than a silence is borne
            self._rest += SIGN_OF_LIFE

    def _end_of_frame(self, data: bytes, at: int) -> int | None:
        """Say where the frame ends that begins at `at`; nothing where it is not all there, or is none."""
        if self._is_plain or len(data) - at < OVERHEAD:
            return None
        kind, _, size = FRAME.unpack_from(data, at)
        after: int = at + OVERHEAD + size
        if kind not in KINDS or (after <= len(data) and data[after - 1] != constants.FRAME_END):
            self._is_plain = True  # aiormq says what is wrong
        return after if after <= len(data) and not self._is_plain else None


class _Content:
    """The delivery that is arriving on one channel."""

    __slots__ = ("_deliver", "_header", "_largest", "_missing", "_parts", "_untaken", "take")

    def __init__(self, take: Take, largest: int | None) -> None:
        self.take = take
        self._largest = largest
        self._untaken: _Untaken | None = None
        self._deliver: tuple[int, bool, str, str] | None = None
        self._header = b""
        self._missing = 0
        self._parts: list[bytes] = []

    @property
    def is_begun(self) -> bool:
        return self._deliver is not None

    def add(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Take the frame whose payload is `data[start:end]`; false if it is of no delivery.

        Raises:
            InvalidFrameError: it can't follow what came before. That ends the connection: no
                body may come to run under the properties of another message.
        """
        if kind == constants.FRAME_METHOD:
            return self._begin(data[start:end])
        if self._deliver is None or kind == constants.FRAME_HEARTBEAT:
            return False
        if bool(self._header) is (kind == constants.FRAME_HEADER):
            raise InvalidFrameError("not one content header before a body")
        if kind == constants.FRAME_HEADER:
            self._header = data[start:end]
            self._missing = _body_size(self._header)
            if self._largest is not None and self._missing > self._largest:
                self._untaken = _Untaken(self._header, self._missing)
        else:
            self._keep(data[start:end])
            self._missing -= end - start
        if self._missing <= 0:
            self._finish(self._deliver)
        return True

    def _begin(self, method: bytes) -> bool:
        if not method.startswith(DELIVER):
            return False
        if self._deliver is not None:
            raise InvalidFrameError("a delivery within another")
        self._deliver = _read_deliver(method)
        self._header = b""
        return True

    def _keep(self, part: bytes) -> None:
        if self._untaken is None:
            self._parts.append(part)
        else:
            self._untaken.pass_by(part)

    def _finish(self, deliver: tuple[int, bool, str, str]) -> None:
        if self._missing < 0:
            raise InvalidFrameError("a body longer than its content header says")
        parts, self._parts, self._deliver = self._parts, [], None
        untaken, self._untaken = self._untaken, None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self.take(Delivered(*deliver, self._header, body if untaken is None else untaken.body()))


class _Untaken:
    """A body that passes by: only its digest is kept."""

    __slots__ = ("_digest", "_properties", "_size")

    def __init__(self, header: bytes, size: int) -> None:
        self._properties = decode_properties(header)
        self._digest = begin_digest(self._properties.content_type)
        self._size = size

    def pass_by(self, part: bytes) -> None:
        self._digest.update(part)

    def body(self) -> UntakenBody:
        return UntakenBody.of(self._properties, size=self._size, digest=self._digest.digest())


def _body_size(header: bytes) -> int:
    if len(header) < SHORTEST_HEADER:
        raise InvalidFrameError("a content header that is cut off")
    size: int = BODY_SIZE.unpack_from(header, SIZE_AT)[0]
    return size


def _read_deliver(method: bytes) -> tuple[int, bool, str, str]:
    """Read basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key."""
    at = len(DELIVER)
    try:
        at += 1 + method[at]
        tag, redelivered = TAG.unpack_from(method, at)
        at += TAG.size
        middle = at + 1 + method[at]
        end = middle + 1 + method[middle]
    except (IndexError, struct.error) as error:
        raise InvalidFrameError(f"a basic.deliver that is cut off: {error}") from error
    if end > len(method):
        raise InvalidFrameError("a basic.deliver whose routing key is cut off")
    # names are any bytes: RabbitMQ does not look whether they are UTF-8
    exchange, key = (
        method[at + 1 : middle].decode(errors="replace"),
        method[middle + 1 : end].decode(errors="replace"),
    )
    return tag, bool(redelivered & 1), exchange, key

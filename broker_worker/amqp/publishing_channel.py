"""A channel that publishes: many publishes under way, and one write for all that come together.

aiormq lets no publish begin before the one before is in the socket, and looks through all that are
unconfirmed at each confirm. Here a publish is a piece of the next write, and one confirm of several
settles them from the oldest on.
"""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import aiormq.abc
from aiormq.abc import ChannelFrame, ConfirmationFrameType
from aiormq.exceptions import ChannelInvalidStateError, DeliveryError, InvalidFrameError
from pamqp import commands, constants
from pamqp.header import ContentHeader

from broker_worker.amqp.channel import WRITER_IS_FULL, OwnChannel
from broker_worker.amqp.properties import SHORT, EncodedProperties
from broker_worker.amqp.safe_decoding import FRAME
from broker_worker.errors import UnpublishableError

LARGE_WRITE = 64 * 1024  # bytes of a body; such go one after the other, so that few copies are in memory
END = bytes((constants.FRAME_END,))
PUBLISH = struct.pack(">IH", commands.Basic.Publish.index, 0)  # with the reserved ticket
MANDATORY = b"\x01"
HEADER = struct.Struct(">HHQ")  # class, weight, size of the body
BASIC = commands.Basic.frame_id

Piece = bytes | memoryview


class ReturnedError(Exception):
    """The broker had no queue for it."""


class PublishingChannel(OwnChannel):
    """A channel in confirm mode."""

    def __init__(self, connector: aiormq.abc.AbstractConnection, number: int) -> None:
        super().__init__(connector, number)
        self._unconfirmed: OrderedDict[int, _Unconfirmed] = OrderedDict()
        self._tag_by_id: dict[str, int] = {}
        self._unwritten: list[Piece] = []
        self._written: asyncio.Future[None] | None = None  # of the large one that is on its way
        self._is_flush_coming = False
        self._one_at_a_time = asyncio.Lock()
        self._closing.add_done_callback(self._on_closed)

    async def publish(
        self, body: bytes, *, exchange: str, routing_key: str, properties: EncodedProperties, mandatory: bool
    ) -> None:
        """Return once the broker has confirmed it.

        Raises:
            ReturnedError: no queue is bound for it.
            DeliveryError: the broker refused it.
            UnpublishableError: AMQP can't carry the names.
            Exception: the channel is lost; what the library raises then.
        """
        pieces = self._frames(exchange, routing_key, properties, body, mandatory=mandatory)
        if not self.is_alive:
            raise ChannelInvalidStateError("the channel is closed")
        if len(body) < LARGE_WRITE:
            return await self._send(pieces, properties)
        async with self._one_at_a_time:
            if not self.is_alive:
                raise ChannelInvalidStateError("the channel is closed")
            confirmed = self._send(pieces, properties)
            self._written = self.loop.create_future()
            try:
                await self._written
            except BaseException:
                if not confirmed.cancel():
                    confirmed.exception()  # is the same, and nobody else looks
                raise
        return await confirmed

    def begin(
        self, body: bytes, *, exchange: str, routing_key: str, properties: EncodedProperties, mandatory: bool
    ) -> asyncio.Future[None] | None:
        """Publish a small body and answer with what ends as `publish` does; nothing where it can't be done.

        Raises:
            UnpublishableError: AMQP can't carry the names.
        """
        if len(body) >= LARGE_WRITE or not self.is_alive:
            return None
        pieces = self._frames(exchange, routing_key, properties, body, mandatory=mandatory)
        return self._send(pieces, properties)

    def lose(self, error: Exception) -> None:
        """Tell all who wait that nothing will be confirmed any more."""
        waiting = [each.confirmed for each in self._unconfirmed.values()]
        self._unconfirmed.clear()
        self._tag_by_id.clear()
        self._unwritten.clear()
        for future in (*waiting, self._written):
            if future is not None and not future.done():
                future.set_exception(error)

    def _send(self, pieces: Sequence[Piece], properties: EncodedProperties) -> asyncio.Future[None]:
        self.delivery_tag += 1
        confirmed: asyncio.Future[None] = self.loop.create_future()
        message_id = properties.message_id or ""
        self._unconfirmed[self.delivery_tag] = _Unconfirmed(confirmed, message_id)
        self._tag_by_id[message_id] = self.delivery_tag
        self._unwritten += pieces
        if not self._is_flush_coming:
            self._is_flush_coming = True
            self.loop.call_soon(self._flush)
        return confirmed

    def _flush(self) -> None:
        """Hand all that has come together to the connection's writer, in the order of the tags."""
        self._is_flush_coming = False
        if not self.is_alive:
            self._unwritten.clear()
        if not self._unwritten:
            return
        written = self._written if self._written is not None and not self._written.done() else None
        frame = ChannelFrame(b"".join(self._unwritten), should_close=False, drain_future=written)
        try:
            self.write_queue.put_nowait(frame)
        except asyncio.QueueFull:
            self._is_flush_coming = True
            self.loop.call_later(WRITER_IS_FULL, self._flush)
        else:
            self._unwritten.clear()

    def _frames(
        self, exchange: str, routing_key: str, properties: EncodedProperties, body: bytes, *, mandatory: bool
    ) -> list[Piece]:
        header = HEADER.pack(BASIC, 0, len(body)) + properties.encoded
        pieces: list[Piece] = [
            *self._frame(constants.FRAME_METHOD, _method(exchange, routing_key, mandatory=mandatory)),
            *self._frame(constants.FRAME_HEADER, header),
        ]
        whole, most = memoryview(body), self.max_content_size
        for start in range(0, len(body), most):
            pieces += self._frame(constants.FRAME_BODY, whole[start : start + most])
        return pieces

    def _frame(self, kind: int, payload: Piece) -> tuple[Piece, Piece, Piece]:
        return FRAME.pack(kind, self.number, len(payload)), payload, END

    async def _on_confirm_frame(self, frame: ConfirmationFrameType) -> None:
        tag = frame.delivery_tag or 0
        if getattr(frame, "multiple", False):
            while self._unconfirmed and (oldest := next(iter(self._unconfirmed))) <= tag:
                self._settle(oldest, frame)
        else:
            self._settle(tag, frame)

    def _settle(self, tag: int, answer: ConfirmationFrameType | None) -> None:
        """Answer whoever waits; without an answer of the broker's, the message was returned."""
        found = self._unconfirmed.pop(tag, None)
        if found is None:  # was returned
            return
        self._tag_by_id.pop(found.message_id, None)
        if found.confirmed.done():  # nobody waits for it any more
            return
        match answer:
            case None:
                found.confirmed.set_exception(ReturnedError())
            case commands.Basic.Ack():
                found.confirmed.set_result(None)
            case _:
                found.confirmed.set_exception(DeliveryError(None, answer))

    async def _on_return_frame(self, frame: commands.Basic.Return) -> None:
        header = await self._get_frame()
        if not isinstance(header, ContentHeader):
            raise InvalidFrameError(f"{header!r} instead of a content header")
        await self._read_content(frame, header)
        if (tag := self._tag_by_id.get(header.properties.message_id or "")) is not None:
            self._settle(tag, None)

    def _on_closed(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self.lose(
            error if isinstance(error, Exception) else ChannelInvalidStateError("the channel is closed")
        )


class _Unconfirmed(NamedTuple):
    confirmed: asyncio.Future[None]
    message_id: str


@lru_cache(1000)  # copies go to a few exchanges and queues
def _method(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    return (
        PUBLISH + _short_string(exchange) + _short_string(routing_key) + (MANDATORY if mandatory else b"\0")
    )


def _short_string(text: str) -> bytes:
    """Encode a name, or raise UnpublishableError: cut or replaced, it would lead elsewhere."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise UnpublishableError(f"AMQP can't carry the name {text[:80]!r}: {error.reason}") from error
    if len(encoded) > SHORT:
        raise UnpublishableError(f"AMQP can't carry the name {text[:80]!r}: it has more than {SHORT} bytes")
    return bytes((len(encoded),)) + encoded

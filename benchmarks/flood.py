"""Publish very many messages fast: persistent, confirmed, each with an id of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiormq
import aiormq.abc
import pamqp.frame
from aiormq.abc import ChannelFrame, ConfirmationFrameType
from pamqp.body import ContentBody
from pamqp.commands import Basic, Confirm
from pamqp.header import ContentHeader

from benchmarks.payload import TASK, body

DIGITS = 12
MOST_IN_ONE_WRITE = 1_000
MOST_UNCONFIRMED = 20_000
SECONDS_WITHOUT_CONFIRM = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """What is published: `count` messages with the ids `first`, `first + 1`… in twelve digits."""

    exchange: str
    routing_key: str
    count: int
    first: int = 0
    task: str = TASK
    headers: Mapping[str, str | int] | None = None  # `ID` as a value stands for the message's id


ID = "0" * DIGITS


async def flood(url: str, wanted: Flood) -> None:
    """Publish, and return when the broker has confirmed all.

    All messages are bytes of one template with another id each, written together: a frame at a time costs
    twenty times as much, and a million messages more time than all that is measured with them.

    Raises:
        TimeoutError: the broker confirmed nothing for a minute.
        aiormq.DeliveryError: it refused one.
    """
    connection = await aiormq.connect(url)
    try:
        channel = _Channel(connection, number=1)
        connection.channels[1] = channel
        await channel.open()
        await channel.rpc(Confirm.Select())
        pieces = _template(wanted, channel.number)
        for start in range(0, wanted.count, MOST_IN_ONE_WRITE):
            await channel.confirmed(start - MOST_UNCONFIRMED)
            numbers = range(start, min(start + MOST_IN_ONE_WRITE, wanted.count))
            written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            payload = b"".join((b"%012d" % (wanted.first + number)).join(pieces) for number in numbers)
            await channel.write_queue.put(ChannelFrame(payload, should_close=False, drain_future=written))
            await written
        await channel.confirmed(wanted.count)
    finally:
        await connection.close()


def _template(wanted: Flood, channel: int) -> list[bytes]:
    """Return the frames of one message, cut where the id belongs."""
    content = body(0)
    properties = Basic.Properties(
        content_type="application/json",
        delivery_mode=2,
        message_type=wanted.task,
        message_id=ID,
        headers=dict(wanted.headers) if wanted.headers is not None else None,
    )
    frames = (
        Basic.Publish(exchange=wanted.exchange, routing_key=wanted.routing_key),
        ContentHeader(properties=properties, body_size=len(content)),
        ContentBody(content),
    )
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames).split(ID.encode())


class _Channel(aiormq.Channel):
    """A channel that only counts its confirms."""

    def __init__(self, connection: aiormq.abc.AbstractConnection, number: int) -> None:
        super().__init__(connection, number, publisher_confirms=False)
        self._highest = 0  # all up to this tag are confirmed
        self._beyond: set[int] = set()
        self._changed = asyncio.Event()
        self._refused: ConfirmationFrameType | None = None

    async def confirmed(self, count: int) -> None:
        """Return when the first `count` are confirmed."""
        while self._refused is None and self._highest < count:
            self._changed.clear()
            async with asyncio.timeout(SECONDS_WITHOUT_CONFIRM):
                await self._changed.wait()
        if self._refused is not None:
            raise aiormq.DeliveryError(None, self._refused)

    async def _on_confirm_frame(self, frame: ConfirmationFrameType) -> None:
        if not isinstance(frame, Basic.Ack):
            self._refused = frame
            self._changed.set()
            return
        tag = frame.delivery_tag or 0
        if frame.multiple:
            self._highest = max(self._highest, tag)
            self._beyond = {other for other in self._beyond if other > tag}
        else:
            self._beyond.add(tag)
        while self._highest + 1 in self._beyond:
            self._highest += 1
            self._beyond.discard(self._highest)
        self._changed.set()

"""The channel below aio-pika's, with a shorter way for deliveries and acks.

aio-pika makes two tasks and a copy of twenty fields of every message; aiormq makes one
task. Here a delivery is a plain call (`delivery_stream.py`), and an ack is a frame in the
writer's queue: nothing that runs ever waits for the connection, and nothing hangs when it
is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiormq
import aiormq.abc
from aiormq.abc import ChannelFrame, ExceptionType, TimeoutType
from aiormq.channel import exception_by_code
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import commands
from pamqp.base import Frame

from broker_worker.amqp.delivery_stream import Delivered, DeliveryStream
from broker_worker.errors import BrokerUnavailableError

CHANNEL = TypeVar("CHANNEL", bound="OwnChannel")
WRITER_IS_FULL = 0.01  # seconds until a frame that found no room is tried again
HIGHEST_CHANNEL = 65535  # where the broker names no limit


class OwnChannel(aiormq.Channel):
    """aiormq's channel, which is never written to once it is closed by the broker or by us.

    The broker forgets the channel's number with the close-ok; aiormq goes on to
    accept frames for some turns of the loop, and one frame on an unknown channel
    ends the whole connection.
    """

    _is_closing = False
    _is_left = False

    @property
    def is_alive(self) -> bool:
        """Whether a frame that is sent now can still mean something to the broker."""
        is_ending = self._is_closing or self._is_left
        return not is_ending and not self.is_closed and self.connection.is_opened

    def leave(self) -> None:
        """Note that our close is on its way, or will be: nothing may come behind it."""
        self._is_left = True

    async def close(
        self,
        exc: ExceptionType | None = asyncio.CancelledError,
        timeout: TimeoutType = None,  # noqa: ASYNC109 - the library's parameter
    ) -> None:
        """Close it; what comes later or is not written yet never is: acks, and with them the deliveries."""
        self.leave()
        await super().close(exc, timeout)

    @property
    @asynccontextmanager
    async def lock(self) -> AsyncGenerator[None, None]:
        """Hold the channel's lock; refused when it is closed or closing."""
        async with super().lock:
            if self._is_closing:
                raise ChannelInvalidStateError("the broker closed the channel")
            yield

    async def _on_close_frame(self, frame: commands.Channel.Close) -> None:
        self._is_closing = True
        # aiormq drops the close-ok when there is no room for it, and the broker then
        # ignores whatever is opened later under the same number
        while self.write_queue.full() and self.connection.is_opened:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(WRITER_IS_FULL)
        await super()._on_close_frame(frame)


class ConsumingChannel(OwnChannel):
    """A channel with one consumer.

    `lost` becomes the reason once no more deliveries will come.
    """

    def __init__(self, connector: aiormq.abc.AbstractConnection, number: int) -> None:
        super().__init__(connector, number, publisher_confirms=False, frame_buffer=0)
        self.lost: asyncio.Future[BrokerUnavailableError] = connector.loop.create_future()
        self._closing.add_done_callback(self._on_closed)
        self.on_consumer_cancel_callbacks.add(self._on_cancelled_by_the_broker)

    def receive(
        self,
        deliveries: DeliveryStream,
        arrived: Callable[[Delivered], None],
        *,
        largest: int | None = None,
    ) -> None:
        """Have `arrived` called with each delivery, until this channel is lost; it must not raise.

        Bodies larger than `largest` bytes are not taken.
        """

        def take(delivered: Delivered) -> None:
            if not self.lost.done():  # what was on its way then goes back to its queue
                arrived(delivered)

        deliveries.subscribe(self.number, take, largest=largest)
        self.lost.add_done_callback(lambda _: deliveries.unsubscribe(self.number, take))

    def send(self, frame: Frame) -> bool:
        """Hand one frame to the writer; false if there is no room for it. Never waits."""
        try:
            self.write_queue.put_nowait(ChannelFrame.marshall(self.number, [frame]))
        except asyncio.QueueFull:
            return False
        return True

    def cancel_consumer(self, tag: str) -> None:
        """Ask for the end of deliveries, and don't wait for an answer.

        A request that is given up while it waits would close the channel, and with
        it give back what is running.
        """
        if self.is_alive and not self.send(commands.Basic.Cancel(tag, nowait=True)):
            self.loop.call_later(WRITER_IS_FULL, self.cancel_consumer, tag)

    def give_up(self, reason: str, cause: BaseException | None = None) -> None:
        """Take no more deliveries: whatever it is, the consumer is lost. Only the first reason counts."""
        if not self.lost.done():
            loss = BrokerUnavailableError(reason)
            loss.__cause__ = cause
            self.lost.set_result(loss)

    async def _on_close_frame(self, frame: commands.Channel.Close) -> None:
        reason = f"the broker closed the channel: {frame.reply_code} {frame.reply_text}"
        self.give_up(reason, exception_by_code(frame))
        await super()._on_close_frame(frame)

    def _on_cancelled_by_the_broker(self, _: commands.Basic.Cancel) -> None:
        self.give_up("the broker cancelled the consumer (its queue was deleted or moved)")

    def _on_closed(self, _: asyncio.Future[None]) -> None:
        self.give_up("the channel is closed")


async def open_channel(
    connection: aiormq.abc.AbstractConnection,
    make: Callable[[aiormq.abc.AbstractConnection, int], CHANNEL],
) -> CHANNEL:
    """Open the channel that `make` makes under the lowest free number.

    aiormq's own `channel()` counts beyond the number of channels that the broker
    granted, which ends the connection. A cancellation closes the channel.
    """
    highest = connection.connection_tune.channel_max or HIGHEST_CHANNEL
    number = next(number for number in range(1, highest + 2) if number not in connection.channels)
    if number > highest:
        raise aiormq.AMQPError(f"all {highest} channels of the connection are in use")
    channel = make(connection, number)
    connection.channels[number] = channel
    await channel.open()
    return channel


def plain_channel(connection: aiormq.abc.AbstractConnection, number: int) -> OwnChannel:
    """Make a channel for declarations and questions."""
    return OwnChannel(connection, number, publisher_confirms=False)

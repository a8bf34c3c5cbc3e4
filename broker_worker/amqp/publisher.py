"""Confirmed publishing, over a connection of its own.

Every publish is persistent and confirmed, under a hard deadline that includes the
wait for a connection; all but events, for which there may be no queue, are mandatory.
There is one channel for each exchange: the broker answers a missing exchange or a
missing right by closing the channel, which then hits only those who would have got the
same answer. Large bodies have channels of their own too, since a body that the broker
finds too large also ends its channel. Handlers may name any number of exchanges: a
channel that nobody uses is closed before there are too many.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import aiormq
from aiormq.exceptions import DeliveryError

from broker_worker.amqp.channel import open_channel
from broker_worker.amqp.connection import Connection, Link
from broker_worker.amqp.consumer import Declare
from broker_worker.amqp.failures import translated
from broker_worker.amqp.properties import EncodedProperties, encode_properties, short
from broker_worker.amqp.publishing_channel import PublishingChannel, ReturnedError
from broker_worker.amqp.topology import Topology, choose_rung
from broker_worker.errors import BrokerUnavailableError, PublishError
from broker_worker.events import Emit, TopologyRepaired
from broker_worker.outgoing import Kind, Outgoing

DEADLINE = 30.0  # seconds for one publish, the wait for a connection included
UNCONFIRMED = 200  # publishes at once; more wait, so that trouble shows as latency and not as memory
LARGE_BODY = 1024 * 1024  # bytes from which on a body has another channel
FRAME_OVERHEAD = 20  # bytes of a header frame around the properties
MOST_CHANNELS = 300  # beside those in use; the broker grants 2047 by default
REPAIR_INTERVAL = 1.0  # seconds between two repairs of the topology


class Publisher:
    """Publishes what the outbox holds; satisfies `ports.Publisher`."""

    def __init__(
        self,
        link: Link,
        topology: Topology,
        *,
        emit: Emit,
        declare: Declare | None = None,
        draw: Callable[[], float] = random.random,
        deadline: float = DEADLINE,
        most_channels: int = MOST_CHANNELS,
    ) -> None:
        """Publish over `link`; `declare` restores missing exchanges, `None` where that is not allowed."""
        self._link = link
        self._topology = topology
        self._emit = emit
        self._declare = declare
        self._draw = draw
        self._deadline = deadline
        self._most_channels = most_channels
        self._slots = asyncio.BoundedSemaphore(UNCONFIRMED)
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._repair_is_wanted = asyncio.Event()
        self._channels: dict[tuple[str, bool], _SharedChannel] = {}

    async def run(self) -> None:
        """Keep the connection up until cancelled or closed."""
        await self._link.run(self._serve)

    async def close(self) -> None:
        """Close the connection, within 5 s; `run` returns then."""
        await self._link.close()

    async def publish(self, outgoing: Outgoing) -> None:
        """Return once the broker has confirmed `outgoing` and did not return it; events are never returned.

        Raises:
            PublishError: it was returned, refused, can't be encoded, or was not confirmed
                within 30 s; it may be sent twice.
        """
        properties = encode_properties(outgoing.properties)
        exchange, routing_key = self._destination(outgoing)
        what = f"publishing to {exchange or 'the default exchange'} with key {routing_key!r}"
        try:
            with translated(what):
                async with asyncio.timeout(self._deadline), self._slots:
                    await self._connected.wait()
                    await self._publish(exchange, routing_key, properties, outgoing)
        except PublishError:
            raise
        except BrokerUnavailableError as error:
            is_ours = outgoing.kind is not Kind.EVENT
            if is_ours and isinstance(error.__cause__, aiormq.ChannelNotFoundEntity):
                self._repair_is_wanted.set()
            raise PublishError(str(error)) from error

    def _destination(self, outgoing: Outgoing) -> tuple[str, str]:
        match outgoing.kind:
            case Kind.COPY if outgoing.delay.total_seconds() > 0:
                rung = choose_rung(outgoing.delay, self._draw(), self._topology.rungs)
                return self._topology.delay(rung), outgoing.routing_key
            case Kind.COPY:
                return self._topology.tasks_exchange, outgoing.routing_key
            case Kind.DEAD_LETTER:
                return self._topology.dead_letter_exchange, short(outgoing.routing_key)
            case Kind.REPLY:
                return "", outgoing.routing_key
            case Kind.EVENT:
                return _short_enough(outgoing.exchange or ""), _short_enough(outgoing.routing_key)

    async def _publish(
        self, exchange: str, routing_key: str, properties: EncodedProperties, outgoing: Outgoing
    ) -> None:
        connection = self._connection
        if connection is None:
            raise BrokerUnavailableError("the connection was lost")
        if len(properties.encoded) + FRAME_OVERHEAD > connection.wire.connection_tune.frame_max:
            # the broker ends the whole connection for such a frame
            raise PublishError(f"the headers have {len(properties.encoded)} bytes, more than AMQP can carry")
        try:
            shared = await self._shared((exchange, len(outgoing.body) > LARGE_BODY))
            with shared:
                channel = shared.channel or await shared.opened(connection)
                await channel.publish(
                    outgoing.body,
                    exchange=exchange,
                    routing_key=routing_key,
                    properties=properties,
                    mandatory=outgoing.kind is not Kind.EVENT,
                )
        except ReturnedError as error:
            raise PublishError(f"returned by the broker: no queue for key {routing_key!r}") from error
        except DeliveryError as error:
            raise PublishError(f"refused by the broker: {error}") from error

    async def _shared(self, key: tuple[str, bool]) -> _SharedChannel:
        """Find the channel for `key`; those that were not used for longest give way to a new one."""
        if key not in self._channels:
            idle = [other for other, shared in self._channels.items() if not shared.is_in_use]
            surplus = idle[: max(len(self._channels) + 1 - self._most_channels, 0)]
            for shared in [self._channels.pop(other) for other in surplus]:
                await shared.close()
        shared = self._channels.pop(key) if key in self._channels else _SharedChannel()
        self._channels[key] = shared  # the last used comes last
        return shared

    async def _serve(self, connection: Connection) -> None:
        self._channels = {}
        self._connection = connection
        self._connected.set()
        try:
            await self._repair_when_wanted(connection)
        finally:
            self._connected.clear()
            self._connection = None
            for shared in self._channels.values():
                shared.lose()

    async def _repair_when_wanted(self, connection: Connection) -> None:
        while True:
            await self._repair_is_wanted.wait()
            try:
                await self._repair(connection)
            except BrokerUnavailableError:
                if not connection.is_open:
                    raise
                # refused: publishes elsewhere go on, and those that fail say so themselves
            await asyncio.sleep(REPAIR_INTERVAL)
            self._repair_is_wanted.clear()

    async def _repair(self, connection: Connection) -> None:
        if self._declare is not None:
            for name in await self._declare(connection):
                self._emit(TopologyRepaired(name))


class _SharedChannel:
    """A confirming channel that is opened when it is first needed, and again when it is gone."""

    def __init__(self) -> None:
        self._channel: PublishingChannel | None = None
        self._opening = asyncio.Lock()
        self._users = 0

    @property
    def is_in_use(self) -> bool:
        return self._users > 0

    @property
    def channel(self) -> PublishingChannel | None:
        """The channel, where it is open."""
        return self._channel if self._channel is not None and self._channel.is_alive else None

    def __enter__(self) -> None:
        """Be in use until the end of the block."""
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1

    def lose(self) -> None:
        """Let nobody wait for confirms any more: the library does not always tell them."""
        if self._channel is not None:
            self._channel.lose(BrokerUnavailableError("the connection was lost"))

    async def close(self) -> None:
        """Close the channel, which nobody uses."""
        if self.channel is not None:
            await self.channel.close()

    async def opened(self, connection: Connection) -> PublishingChannel:
        """Open the channel, unless somebody else is at it already."""
        async with self._opening:
            if self.channel is None:
                self._channel = await open_channel(connection.wire, PublishingChannel)
            assert self._channel is not None  # noqa: S101 - by one of us
            return self._channel


def _short_enough(text: str) -> str:
    """Return `text`, or raise PublishError: cut, it would lead elsewhere."""
    if short(text) != text:
        raise PublishError(f"AMQP can't carry the name {text[:80]!r}: it has more than 255 bytes")
    return text

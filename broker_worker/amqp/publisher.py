"""Confirmed publishing, over a connection of its own.

Every publish is persistent and confirmed, under a hard deadline that includes the
wait for a connection that the broker has not blocked; all but events, for which there may
be no queue, are mandatory.
There is one channel for each exchange: the broker answers a missing exchange or a
missing right by closing the channel, which then hits only those who would have got the
same answer. Large bodies have channels of their own too, since a body that the broker
finds too large also ends its channel. Handlers may name any number of exchanges: a
channel that nobody uses is closed before there are too many.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import aiormq
from aiormq.exceptions import DeliveryError

from broker_worker.amqp.channel import open_channel
from broker_worker.amqp.connection import Connection, Link
from broker_worker.amqp.consumer import Declare
from broker_worker.amqp.failures import describe, translated
from broker_worker.amqp.properties import EncodedProperties, encode_properties, short
from broker_worker.amqp.publishing_channel import PublishingChannel, ReturnedError
from broker_worker.amqp.topology import Topology, choose_rung
from broker_worker.errors import BrokerUnavailableError, PublishError, UnpublishableError, UnsentError
from broker_worker.events import Emit, PublishingBlocked, TopologyRepaired
from broker_worker.outgoing import Kind, Outgoing

DEADLINE = 30.0  # seconds for one publish, the wait for a connection included
UNCONFIRMED = 200  # at once, each of those begun and awaited; so trouble shows as latency, not as memory
LARGE_BODY = 1024 * 1024  # bytes from which on a body has another channel
FRAME_OVERHEAD = 20  # bytes of a header frame around the properties
MOST_CHANNELS = 300  # beside those in use; the broker grants 2047 by default
PROBES = 5  # publishes at once to where the last one was not confirmed in time
MOST_MUTE = 1000  # destinations remembered as such
NO_DELAY = timedelta(0)
# a member of an enumeration costs 0.4 µs a look in Python 3.11
COPY, DEAD_LETTER, REPLY, EVENT = Kind.COPY, Kind.DEAD_LETTER, Kind.REPLY, Kind.EVENT
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
        self._begun: dict[asyncio.Future[None], _Begun] = {}  # from the oldest on
        self._giving_up: asyncio.TimerHandle | None = None
        self._tasks_exchange = topology.tasks_exchange
        self._dead_letter_exchange = topology.dead_letter_exchange
        self._exchange_by_rung = {rung: topology.delay(rung) for rung in topology.rungs}
        self._connection: Connection | None = None
        self._is_ready = asyncio.Event()  # there is a connection, and the broker takes publishes over it
        self._repair_is_wanted = asyncio.Event()
        self._channels: dict[tuple[str, bool], _SharedChannel] = {}
        self._probes_by_mute: dict[tuple[str, str], int] = {}  # under way, where nothing is confirmed

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
            UnsentError: there was no connection for it in that time.
        """
        properties = encode_properties(outgoing.properties)
        exchange, routing_key = self._destination(outgoing)
        is_unsent = True
        try:
            with translated(_what(exchange, routing_key)), self._probing(exchange, routing_key):
                async with asyncio.timeout(self._deadline), self._slots:
                    await self._is_ready.wait()
                    is_unsent = False
                    await self._publish(exchange, routing_key, properties, outgoing)
            self._note_answer(exchange, routing_key)
        except PublishError as error:
            self._repair_after(error.__cause__, outgoing)
            raise
        except BrokerUnavailableError as error:
            if is_unsent:
                raise UnsentError(f"{error}{self._obstacle()}") from error
            if isinstance(error.__cause__, TimeoutError):
                self._note_silence(exchange, routing_key)
            self._repair_after(error.__cause__, outgoing)
            raise PublishError(str(error)) from error

    def begin(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        """Publish at once, without a task and a timer for it, where only the confirm is to be waited for.

        Then `done` is called once, later, with nothing or with what `publish` would raise. Else the answer
        is false, nothing is sent, and `publish` is the way: there is no connection, no channel or no room,
        the body is large, or something is wrong with the message.
        """
        connection = self._connection
        if connection is None or not self._is_ready.is_set() or len(self._begun) >= UNCONFIRMED:
            return False
        try:
            properties = encode_properties(outgoing.properties)
            exchange, routing_key = self._destination(outgoing)
            key = (exchange, False)
            shared = self._channels.get(key)
            channel = shared.channel if shared is not None else None
            if (
                shared is None
                or channel is None
                or self._destination_key(exchange, routing_key) in self._probes_by_mute
                or len(properties.encoded) + FRAME_OVERHEAD > connection.wire.connection_tune.frame_max
            ):
                return False
            confirmed = channel.begin(
                outgoing.body,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                mandatory=outgoing.kind is not EVENT,
            )
        except PublishError:
            return False
        if confirmed is None:
            return False
        self._channels[key] = self._channels.pop(key)  # the last used comes last
        shared.users += 1
        loop = confirmed.get_loop()
        self._begun[confirmed] = _Begun(outgoing, exchange, shared, done, loop.time() + self._deadline)
        confirmed.add_done_callback(self._on_answer)
        if self._giving_up is None:
            self._giving_up = loop.call_later(self._deadline, self._give_up, loop)
        return True

    def _on_answer(self, confirmed: asyncio.Future[None]) -> None:
        begun = self._begun.pop(confirmed)
        begun.shared.users -= 1
        error = confirmed.exception()
        if error is None:
            self._note_answer(begun.exchange, begun.outgoing.routing_key)
        elif isinstance(error, TimeoutError):
            self._note_silence(begun.exchange, begun.outgoing.routing_key)
        begun.done(None if error is None else self._failure(begun, error))

    def _failure(self, begun: _Begun, error: BaseException) -> PublishError:
        outgoing = begun.outgoing
        self._repair_after(error, outgoing)
        match error:
            case ReturnedError() | DeliveryError():
                text = _refusal(error, outgoing.routing_key)
            case BrokerUnavailableError():
                text = str(error)
            case _:
                text = f"{_what(begun.exchange, outgoing.routing_key)}: {describe(error)}"
        failure = PublishError(text)
        failure.__cause__ = error
        return failure

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let nobody wait beyond the deadline. One timer serves all: it is set for the oldest."""
        self._giving_up = None
        for confirmed, begun in list(self._begun.items()):
            if begun.deadline > loop.time():
                self._giving_up = loop.call_at(begun.deadline, self._give_up, loop)
                return
            if not confirmed.done():
                confirmed.set_exception(TimeoutError())

    def _repair_after(self, error: BaseException | None, outgoing: Outgoing) -> None:
        is_missing = isinstance(error, aiormq.ChannelNotFoundEntity)
        if isinstance(error, ReturnedError):  # its exchange is there, and a queue of ours is not
            is_missing = outgoing.kind is COPY or outgoing.kind is DEAD_LETTER
        if is_missing and outgoing.kind is not EVENT:
            self._repair_is_wanted.set()

    @contextmanager
    def _probing(self, exchange: str, routing_key: str) -> Iterator[None]:
        """Let few at once go where nothing is confirmed: they would take all the room there is.

        A quorum queue without a leader takes messages and never answers.
        """
        key, probes = self._destination_key(exchange, routing_key), self._probes_by_mute
        is_probe = key in probes
        if is_probe:
            if probes[key] >= PROBES:
                raise PublishError(
                    f"{_what(exchange, routing_key)}: nothing is confirmed there at the moment"
                )
            probes[key] += 1
        try:
            yield
        finally:
            if is_probe and key in probes:
                probes[key] = max(probes[key] - 1, 0)

    def _note_answer(self, exchange: str, routing_key: str) -> None:
        if self._probes_by_mute:
            self._probes_by_mute.pop(self._destination_key(exchange, routing_key), None)

    def _note_silence(self, exchange: str, routing_key: str) -> None:
        """Remember where a publish was not confirmed in time, over a connection that is well."""
        if self._is_ready.is_set():
            while len(self._probes_by_mute) >= MOST_MUTE:
                self._probes_by_mute.pop(next(iter(self._probes_by_mute)))
            self._probes_by_mute.setdefault(self._destination_key(exchange, routing_key), 0)

    def _destination_key(self, exchange: str, routing_key: str) -> tuple[str, str]:
        """Tell queues apart where one exchange leads to many: of ours one, and the default exchange."""
        leads_to_many = exchange in ("", self._tasks_exchange)
        return exchange, routing_key if leads_to_many else ""

    def _destination(self, outgoing: Outgoing) -> tuple[str, str]:
        kind = outgoing.kind
        if kind is COPY:
            if outgoing.delay <= NO_DELAY:
                return self._tasks_exchange, outgoing.routing_key
            rung = choose_rung(outgoing.delay, self._draw(), self._topology.rungs)
            return self._exchange_by_rung[rung], outgoing.routing_key
        if kind is DEAD_LETTER:
            return self._dead_letter_exchange, short(outgoing.routing_key)
        if kind is REPLY:
            return "", outgoing.routing_key
        return _short_enough(outgoing.exchange or ""), _short_enough(outgoing.routing_key)

    async def _publish(
        self, exchange: str, routing_key: str, properties: EncodedProperties, outgoing: Outgoing
    ) -> None:
        connection = self._connection
        if connection is None:
            raise BrokerUnavailableError("the connection was lost")
        if len(properties.encoded) + FRAME_OVERHEAD > connection.wire.connection_tune.frame_max:
            # the broker ends the whole connection for such a frame
            raise UnpublishableError(
                f"the headers have {len(properties.encoded)} bytes, more than AMQP can carry"
            )
        try:
            shared = await self._shared((exchange, len(outgoing.body) > LARGE_BODY))
            with shared:
                channel = shared.channel or await shared.opened(connection)
                await channel.publish(
                    outgoing.body,
                    exchange=exchange,
                    routing_key=routing_key,
                    properties=properties,
                    mandatory=outgoing.kind is not EVENT,
                )
        except (ReturnedError, DeliveryError) as error:
            raise PublishError(_refusal(error, routing_key)) from error

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
        self._probes_by_mute.clear()
        self._connection = connection
        self._is_ready.set()
        connection.on_blocked = self._note_blocked
        self._note_blocked()  # it may have been before we looked
        try:
            await self._repair_when_wanted(connection)
        finally:
            self._is_ready.clear()
            self._connection = None
            if connection.blocked is not None:
                self._emit(PublishingBlocked(is_blocked=False))
            for shared in self._channels.values():
                shared.lose()

    def _note_blocked(self) -> None:
        """Send nothing that the broker does not read: it would fill our memory, and be done twice."""
        if self._connection is None:
            return
        reason, was_blocked = self._connection.blocked, not self._is_ready.is_set()
        if reason is None:
            self._is_ready.set()
        else:
            self._is_ready.clear()
        if was_blocked is (reason is None):
            self._emit(PublishingBlocked(is_blocked=reason is not None, reason=reason or ""))

    def _obstacle(self) -> str:
        """Say what keeps publishes from being sent, where that is not the want of a connection."""
        reason = self._connection.blocked if self._connection is not None else None
        return f"; the broker takes no publishes: {reason}" if reason is not None else ""

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
        self.users = 0

    @property
    def is_in_use(self) -> bool:
        return self.users > 0

    @property
    def channel(self) -> PublishingChannel | None:
        """The channel, where it is open."""
        return self._channel if self._channel is not None and self._channel.is_alive else None

    def __enter__(self) -> None:
        """Be in use until the end of the block."""
        self.users += 1

    def __exit__(self, *_: object) -> None:
        self.users -= 1

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


@dataclass(slots=True, eq=False)
class _Begun:
    """A publish that waits for nothing but its confirm."""

    outgoing: Outgoing
    exchange: str
    shared: _SharedChannel
    done: Callable[[PublishError | None], None]
    deadline: float


def _what(exchange: str, routing_key: str) -> str:
    return f"publishing to {exchange or 'the default exchange'} with key {routing_key!r}"


def _refusal(error: BaseException, routing_key: str) -> str:
    if isinstance(error, ReturnedError):
        return f"returned by the broker: no queue for key {routing_key!r}"
    return f"refused by the broker: {error}"


def _short_enough(text: str) -> str:
    """Return `text`, or raise UnpublishableError: cut, it would lead elsewhere."""
    if short(text) != text:
        raise UnpublishableError(f"AMQP can't carry the name {text[:80]!r}: it has more than 255 bytes")
    return text

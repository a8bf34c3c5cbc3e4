"""Consuming: one channel and one consumer for each queue, kept up for ever.

Each queue is repaired on its own, by a fresh channel, whatever happened to the old
one: closed by the broker, its consumer cancelled, its queue deleted. Where the
broker does not answer at all, the connection is replaced. A delivery belongs to the
channel it came on; what was unsettled there is delivered again by the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import aiormq

from broker_worker.amqp.channel import ConsumingChannel, open_channel, plain_channel
from broker_worker.amqp.connection import Connection, Link
from broker_worker.amqp.delivery import Acker, AmqpDelivery
from broker_worker.amqp.delivery_stream import Delivered
from broker_worker.amqp.failures import ConnectionUnusableError, translated
from broker_worker.amqp.patience import Reports, keep_up
from broker_worker.amqp.topology import Topology
from broker_worker.errors import BrokerUnavailableError
from broker_worker.events import ConsumerChanged, Emit, TopologyRepaired

START_DEADLINE = 15.0  # seconds to open a channel and begin to consume
DEPTH_DEADLINE = 5.0  # seconds to ask for a queue's depth
CLOSE_DEADLINE = 5.0  # seconds to close one channel
SILENCES = 3  # tries without any answer after which the connection is replaced

Declare = Callable[[Connection], Awaitable[Sequence[str]]]
OnDelivery = Callable[[AmqpDelivery], None]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A queue to consume: its name to publishers, its name in the broker, how many unsettled at once."""

    queue: str
    amqp_queue: str
    prefetch: int


class Consumption:
    """Consumes queues over one link. `on_delivery` is a plain function that must not raise or block."""

    def __init__(
        self,
        link: Link,
        topology: Topology,
        subscriptions: Sequence[Subscription],
        *,
        on_delivery: OnDelivery,
        emit: Emit,
        declare: Declare | None = None,
    ) -> None:
        """Consume `subscriptions`; `declare` restores what is missing, `None` where that is not allowed."""
        self._link = link
        self._emit = emit
        self._declare = declare
        self._connection: Connection | None = None
        self._never = asyncio.Event()  # set by nobody: repairs end by cancellation
        self._was_declared = False
        self._consumers = {
            subscription.queue: _Consumer(subscription, topology, on_delivery)
            for subscription in subscriptions
        }

    async def run(self) -> None:
        """Consume until cancelled or closed.

        Raises:
            TopologyError: an entity of the broker differs from what it has to be.
        """
        await self._link.run(self._serve)

    def stop_consuming(self) -> None:
        """Take no more deliveries, for good; what came before can still be acked. Never waits."""
        for consumer in self._consumers.values():
            consumer.stop()

    async def close(self) -> None:
        """Send what is settled and close the connection, within 5 s; `run` returns then."""
        self.stop_consuming()
        for consumer in self._consumers.values():
            consumer.flush()
        await self._link.close()

    def is_consuming(self, queue: str) -> bool:
        """Whether the broker knows our consumer of `queue`."""
        return self._consumers[queue].is_consuming

    @property
    def all_consuming(self) -> bool:
        """Whether that is so for every queue."""
        return all(consumer.is_consuming for consumer in self._consumers.values())

    def unsettled(self, queue: str) -> int:
        """How many deliveries of the present channel are not acked."""
        return self._consumers[queue].unsettled

    def idle_since(self, queue: str) -> float | None:
        """The loop's time since when prefetch has been free without a break; `None` if none is free."""
        return self._consumers[queue].idle_since

    async def ready_depth(self, queue: str) -> int | None:
        """Ask how many messages are ready; `None` where that is not allowed or not possible now."""
        connection = self._connection
        if self._declare is None or connection is None or not connection.is_open:
            return None
        amqp_queue = self._consumers[queue].subscription.amqp_queue
        try:
            with translated(f"asking for the depth of {amqp_queue}"):
                async with asyncio.timeout(DEPTH_DEADLINE):
                    channel = await open_channel(connection.wire, plain_channel)
                    answer = await channel.queue_declare(amqp_queue, passive=True)
                    await channel.close()
        except BrokerUnavailableError:
            return None
        return answer.message_count

    async def _serve(self, connection: Connection) -> None:
        self._connection = connection
        try:
            await self._restore(connection)
            async with asyncio.TaskGroup() as group:
                for consumer in self._consumers.values():
                    group.create_task(self._keep_consuming(connection, consumer))
            await self._never.wait()  # stopped: the connection stays for the acks of what runs
        finally:
            self._connection = None
            for consumer in self._consumers.values():
                consumer.flush()
                consumer.forget()
                if consumer.is_reported_up:
                    self._report(consumer, is_up=False, detail="the connection is gone")

    async def _keep_consuming(self, connection: Connection, consumer: _Consumer) -> None:
        consumer.silences = 0
        await keep_up(lambda: self._consume(connection, consumer), self._never)

    async def _consume(self, connection: Connection, consumer: _Consumer) -> None:
        """Consume until the channel is lost, and raise why. Returns only after `stop_consuming`."""
        if consumer.is_stopped:
            return
        try:
            channel = await self._start(connection, consumer)
            self._report(consumer, is_up=True)
            await _until_lost(channel)
        except BrokerUnavailableError as error:
            self._report(consumer, is_up=False, detail=str(error))
            raise
        finally:
            consumer.forget()

    def _report(self, consumer: _Consumer, *, is_up: bool, detail: str = "") -> None:
        if is_up != consumer.is_reported_up or (not is_up and consumer.reports.is_due()):
            consumer.is_reported_up = is_up
            self._emit(ConsumerChanged(consumer.queue, is_up=is_up, detail=detail))

    async def _start(self, connection: Connection, consumer: _Consumer) -> ConsumingChannel:
        try:
            with translated(f"consuming {consumer.subscription.amqp_queue}"):
                try:
                    return await consumer.start(connection)
                except aiormq.ChannelNotFoundEntity:
                    if self._declare is None:
                        raise
                    await self._restore(connection)
                    return await consumer.start(connection)
        except BrokerUnavailableError as error:
            if isinstance(error.__cause__, TimeoutError):
                consumer.silences += 1
                if consumer.silences >= SILENCES:
                    raise ConnectionUnusableError(str(error)) from error
            raise

    async def _restore(self, connection: Connection) -> None:
        if self._declare is None:
            return
        for name in await self._declare(connection):
            if self._was_declared:
                self._emit(TopologyRepaired(name))
        self._was_declared = True


class _Consumer:
    """One subscription and the channel that serves it at present."""

    def __init__(self, subscription: Subscription, topology: Topology, on_delivery: OnDelivery) -> None:
        self.subscription = subscription
        self.queue = subscription.queue
        self.reports = Reports()
        self.is_reported_up = False
        self.silences = 0
        self.idle_since: float | None = None
        self.is_stopped = False
        self._topology = topology
        self._on_delivery = on_delivery
        self._channel: ConsumingChannel | None = None
        self._acker: Acker | None = None
        self._tag = ""

    @property
    def is_consuming(self) -> bool:
        return self._channel is not None and self._channel.is_alive and not self.is_stopped

    @property
    def unsettled(self) -> int:
        return self._acker.unsettled if self._acker is not None else 0

    async def start(self, connection: Connection) -> ConsumingChannel:
        """Open a channel and consume on it."""
        tag = f"{self.queue}.{uuid4().hex[:12]}"
        async with asyncio.timeout(START_DEADLINE):
            channel = await open_channel(connection.wire, ConsumingChannel)
            acker = Acker(channel, self._count)
            channel.receive(connection.deliveries, lambda delivered: self._arrived(acker, delivered))
            try:
                await channel.basic_qos(prefetch_count=self.subscription.prefetch)
                self._acker = acker  # before the first delivery, which may come before the confirmation
                await channel.basic_consume(self.subscription.amqp_queue, _unused, consumer_tag=tag)
            except BaseException:
                channel.leave()  # a request that is given up has closed it
                raise
        self._channel, self._tag = channel, tag
        self.silences = 0
        self.reports.clear()
        self._count()
        if self.is_stopped:
            self.stop()
        return channel

    def stop(self) -> None:
        """Take no more; the channel stays for the acks of what runs."""
        self.is_stopped = True
        self.idle_since = None
        if self._channel is not None:
            self._channel.cancel_consumer(self._tag)

    def flush(self) -> None:
        if self._acker is not None:
            self._acker.flush()

    def forget(self) -> None:
        """Note that the channel is gone, or going."""
        self._channel = self._acker = self.idle_since = None

    def _arrived(self, acker: Acker, delivered: Delivered) -> None:
        acker.delivered(delivered.tag)
        if self.is_stopped:
            acker.release(delivered.tag)  # was on its way when we stopped: others can have it now
        else:
            self._on_delivery(AmqpDelivery(self.queue, acker, self._topology.work_queue, delivered))

    def _count(self) -> None:
        """Keep `idle_since` right: called whenever the number of unsettled deliveries changes."""
        if self._channel is None or self.is_stopped or self.unsettled >= self.subscription.prefetch:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = self._channel.loop.time()


async def _until_lost(channel: ConsumingChannel) -> None:
    """Wait for the end of a consumer, give its channel up, and raise why.

    The broker takes back what is unsettled on the channel.
    """
    reason = await channel.lost
    if channel.is_alive:
        with translated("closing a channel"):
            async with asyncio.timeout(CLOSE_DEADLINE):
                await channel.close()
    raise BrokerUnavailableError(reason)


async def _unused(_: object) -> None:
    """Stand for aiormq's callback: deliveries go the way of `ConsumingChannel.receive`."""

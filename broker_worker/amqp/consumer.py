"""Consuming: one channel and one consumer for each queue, kept up for ever.

Each queue is repaired on its own, by a fresh channel, whatever happened to the old
one: closed by the broker, its consumer cancelled or forgotten, its queue deleted. What
is missing is declared first: whoever deletes a queue, and declares it again, forgets
its bindings. Where the broker does not answer at all, the connection is replaced. A
delivery belongs to the channel it came on; what was unsettled there is delivered again
by the broker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from uuid import uuid4

import aiormq

from broker_worker.amqp.channel import ConsumingChannel, open_channel, plain_channel
from broker_worker.amqp.connection import Connection, Link
from broker_worker.amqp.declaration import bind
from broker_worker.amqp.delivery import Acker, AmqpDelivery
from broker_worker.amqp.delivery_stream import Delivered
from broker_worker.amqp.failures import ConnectionUnusableError, is_missing, reply_code, translated
from broker_worker.amqp.looking import Looks, QueueLook
from broker_worker.amqp.patience import Reports, keep_up
from broker_worker.amqp.presence import Presence
from broker_worker.amqp.topology import Topology
from broker_worker.errors import BrokerUnavailableError, TopologyError
from broker_worker.events import ConsumerChanged, Emit, TopologyRepaired

START_DEADLINE = 15.0  # seconds to open a channel and begin to consume
# seconds between two looks at whether the broker knows our consumers, give or take a tenth
LOOK_INTERVAL = 8.0
BIND_EVERY = 3  # looks; what was bound stays so as a rule
LOOK_DEADLINE = 5.0  # seconds for one look
CLOSE_DEADLINE = 5.0  # seconds to close one channel
SILENCES = 3  # channels in a row that the broker did not even open, after which the connection is replaced

Declare = Callable[[Connection], Awaitable[Sequence[str]]]
OnDelivery = Callable[[AmqpDelivery], None]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A queue to consume: its name to publishers, its name in the broker, how many unsettled at once.

    A body of more than `largest` bytes is not taken: the delivery has an `UntakenBody`.
    """

    queue: str
    amqp_queue: str
    prefetch: int
    largest: int | None = None


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
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Consume `subscriptions`; `declare` restores what is missing, `None` where that is not allowed."""
        self._link = link
        self._topology = topology
        self._emit = emit
        self._declare = declare
        self._draw = draw
        self._looks: Looks | None = None
        self._silences = 0
        self._never = asyncio.Event()  # set by nobody: repairs end by cancellation
        self._declaring = asyncio.Lock()
        self._declared_at: float | None = None
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

    def states(self) -> dict[str, bool]:
        """Whether the broker knows our consumer, for each queue."""
        return {queue: consumer.is_consuming for queue, consumer in self._consumers.items()}

    def unsettled(self, queue: str) -> int:
        """How many deliveries of the present channel are not acked."""
        return self._consumers[queue].unsettled

    def idle_since(self, queue: str) -> float | None:
        """The loop's time since when prefetch has been free without a break; `None` if none is free."""
        return self._consumers[queue].idle_since

    async def ready_depth(self, queue: str) -> int | None:
        """Ask how many messages are ready; `None` where that is not allowed or not possible now."""
        if self._looks is None:
            return None
        try:
            look = await self._looks.look(self._consumers[queue].subscription.amqp_queue)
        except BrokerUnavailableError:
            return None
        return look.ready if look is not None else None

    async def _serve(self, connection: Connection) -> None:
        self._looks = Looks(connection, deadline=LOOK_DEADLINE)
        self._silences = 0
        try:
            async with asyncio.TaskGroup() as group:
                for consumer in self._consumers.values():
                    consumer.lost_at = asyncio.get_running_loop().time()
                    group.create_task(self._keep_consuming(connection, consumer))
                group.create_task(self._keep_looking(connection, self._looks))
                # The connection stays for the acks of what runs, also when nothing is consumed any more. And
                # Python 3.11 forgets to take back the cancellation of who waits at the end of a group.
                await self._never.wait()
        finally:
            self._looks = None
            for consumer in self._consumers.values():
                consumer.flush()
                consumer.forget()
                if consumer.is_reported_up:
                    self._report(consumer, is_up=False, detail="the connection is gone")

    async def _keep_looking(self, connection: Connection, looks: Looks) -> None:
        """Replace consumers that the broker has forgotten, and the connection where it is deaf."""
        for number in count(1):
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(LOOK_INTERVAL * (0.9 + self._draw() / 5))
            consumers = [consumer for consumer in self._consumers.values() if not consumer.is_stopped]
            if not consumers:
                return
            for consumer in consumers:
                if consumer.is_consuming:
                    await self._look(looks, consumer, since=began)
            if number % BIND_EVERY == 0 and not self._silences:
                await self._bind(connection)

    async def _look(self, looks: Looks, consumer: _Consumer, *, since: float) -> None:
        try:
            look = await looks.look(consumer.subscription.amqp_queue)
        except BrokerUnavailableError as error:
            if looks.is_deaf:
                self._count_silence(str(error))
        else:
            self._silences = 0
            consumer.judge(look, since=since)

    async def _bind(self, connection: Connection) -> None:
        if self._declare is None:
            return
        try:
            await bind(connection, self._topology, {each.amqp_queue for each in self._subscriptions()})
        except BrokerUnavailableError as error:
            if is_missing(error):
                with suppress(BrokerUnavailableError):  # who consumes will say so
                    await self._restore(connection, since=asyncio.get_running_loop().time())

    def _subscriptions(self) -> list[Subscription]:
        return [consumer.subscription for consumer in self._consumers.values()]

    def _count_silence(self, detail: str) -> None:
        self._silences += 1
        if self._silences >= SILENCES:
            raise ConnectionUnusableError(detail)

    async def _keep_consuming(self, connection: Connection, consumer: _Consumer) -> None:
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
            consumer.lost_at = asyncio.get_running_loop().time()
            self._report(consumer, is_up=False, detail=str(error), code=reply_code(error))
            raise
        finally:
            consumer.forget()

    def _report(self, consumer: _Consumer, *, is_up: bool, detail: str = "", code: int | None = None) -> None:
        if is_up != consumer.is_reported_up or (not is_up and consumer.reports.is_due(code)):
            consumer.is_reported_up = is_up
            self._emit(ConsumerChanged(consumer.queue, is_up=is_up, detail=detail, code=code))

    async def _start(self, connection: Connection, consumer: _Consumer) -> ConsumingChannel:
        if consumer.is_suspect:
            await self._try_apart(consumer)
        await self._restore(connection, since=consumer.lost_at)
        try:
            return await self._begin(connection, consumer)
        except BrokerUnavailableError as error:
            if not is_missing(error) or self._declare is None:
                raise
        await self._restore(connection, since=asyncio.get_running_loop().time())
        return await self._begin(connection, consumer)

    async def _begin(self, connection: Connection, consumer: _Consumer) -> ConsumingChannel:
        try:
            with translated(f"consuming {consumer.subscription.amqp_queue}"):
                channel = await consumer.start(connection)
        except BrokerUnavailableError as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            consumer.is_suspect = False
            if consumer.is_answered:
                self._silences = 0
                raise BrokerUnavailableError(f"{error}: has the queue lost its leader?") from error
            self._count_silence(str(error))
            raise
        self._silences = 0
        return channel

    async def _try_apart(self, consumer: _Consumer) -> None:
        """Consume for a moment on another connection, where it costs the other queues nothing.

        RabbitMQ ends the whole connection for one queue whose process is gone.
        """
        with translated(f"consuming {consumer.subscription.amqp_queue}"):
            async with asyncio.timeout(START_DEADLINE), self._link.apart() as connection:
                channel = await open_channel(connection.wire, plain_channel)
                await channel.basic_qos(prefetch_count=1)
                await channel.basic_consume(consumer.subscription.amqp_queue, _unused)
        consumer.is_suspect = False

    async def _restore(self, connection: Connection, *, since: float) -> None:
        """Declare what is missing, unless that was done after `since`: once for consumers lost together."""
        if self._declare is None:
            return
        async with self._declaring:
            if self._declared_at is not None and self._declared_at >= since:
                return
            began = asyncio.get_running_loop().time()
            try:
                created = await self._declare(connection)
            except TopologyError as error:
                if self._declared_at is None:
                    raise
                # somebody changed it under us; who sees it at the start says so and ends
                raise BrokerUnavailableError(str(error)) from error
            if self._declared_at is not None:
                for name in created:
                    self._emit(TopologyRepaired(name))
            self._declared_at = began


class _Consumer:
    """One subscription and the channel that serves it at present."""

    def __init__(self, subscription: Subscription, topology: Topology, on_delivery: OnDelivery) -> None:
        self.subscription = subscription
        self.queue = subscription.queue
        self.reports = Reports()
        self.is_reported_up = False
        self.lost_at = 0.0
        self.is_suspect = False  # whether the connection ended while it waited to consume
        self.is_answered = False  # whether the broker opened the last channel that was asked for
        self.idle_since: float | None = None
        self.is_stopped = False
        self._presence = Presence()
        self._deliveries = 0
        self._is_receiving: Callable[[], bool] = lambda: False
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
        self.is_answered = False
        async with asyncio.timeout(START_DEADLINE):
            channel = await open_channel(connection.wire, ConsumingChannel)
            self.is_answered = True
            acker = Acker(channel, self._count)
            channel.receive(
                connection.deliveries,
                lambda delivered: self._arrived(acker, delivered),
                largest=self.subscription.largest,
            )
            try:
                await channel.basic_qos(prefetch_count=self.subscription.prefetch)
                self._acker = acker  # before the first delivery, which may come before the confirmation
                await self._ask(channel, tag)
            except BaseException:
                channel.leave()  # a request that is given up has closed it
                raise
        self._channel, self._tag = channel, tag
        self._is_receiving = lambda: connection.deliveries.is_receiving(channel.number)
        self.reports.clear()
        self._count()
        if self.is_stopped:
            self.stop()
        return channel

    async def _ask(self, channel: ConsumingChannel, tag: str) -> None:
        self._deliveries = 0
        self._presence.begin()
        self.is_suspect = True
        try:
            await channel.basic_consume(self.subscription.amqp_queue, _unused, consumer_tag=tag)
        except aiormq.ChannelClosed:
            self.is_suspect = False  # an answer, which cost the channel alone
            raise
        self.is_suspect = False

    def stop(self) -> None:
        """Take no more; the channel stays for the acks of what runs."""
        self.is_stopped = True
        self.idle_since = None
        if self._channel is not None:
            self._channel.cancel_consumer(self._tag)

    def judge(self, look: QueueLook | None, *, since: float) -> None:
        """Give the channel up if a look at the queue says that no more deliveries will come."""
        if self._channel is None or self.is_stopped:
            return
        was_idle = self.idle_since is not None and self.idle_since <= since
        reason = self._presence.judge(
            look, deliveries=self._deliveries, has_room=was_idle and not self._is_receiving()
        )
        if reason is not None:
            self._channel.give_up(reason)

    def flush(self) -> None:
        if self._acker is not None:
            self._acker.flush()

    def forget(self) -> None:
        """Note that the channel is gone, or going."""
        self._channel = self._acker = self.idle_since = None

    def _arrived(self, acker: Acker, delivered: Delivered) -> None:
        acker.delivered(delivered.tag)
        self._deliveries += 1
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
    loss = await channel.lost
    if channel.is_alive:
        with translated("closing a channel"):
            async with asyncio.timeout(CLOSE_DEADLINE):
                await channel.close()
    raise loss


async def _unused(_: object) -> None:
    """Stand for aiormq's callback: deliveries go the way of `ConsumingChannel.receive`."""

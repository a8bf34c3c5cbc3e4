"""What stands in a simulated process for `broker_worker/amqp`: consuming, acking, publishing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from broker_worker.amqp.consumer import Subscription
from broker_worker.amqp.topology import choose_rung
from broker_worker.errors import BrokerUnavailableError, PublishError
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.task import Poisoning
from tests.simulation.broker import EVENTS, Answer, Channel, Connection, Held

if TYPE_CHECKING:
    from tests.simulation.process import SimulatedProcess

PUBLISH_WAIT = 30.0  # seconds for one publish
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 3.0  # seconds between two tries to connect


@dataclass(eq=False, slots=True)
class SimulatedDelivery:
    """One arrival; satisfies `ports.Delivery` and the reader's `LetterDelivery`."""

    queue: str
    channel: Channel
    tag: int
    held: Held
    process: SimulatedProcess
    on_settled: Callable[[SimulatedDelivery], None]

    @property
    def properties(self) -> Properties:
        return self.held.properties

    @property
    def body(self) -> bytes:
        return self.held.body

    @property
    def exchange(self) -> str:
        return self.held.exchange

    @property
    def routing_key(self) -> str:
        return self.held.routing_key

    @property
    def redelivered(self) -> bool:
        return self.held.returns > 0

    @property
    def poisoning(self) -> Poisoning | None:
        return self.held.poisoning

    @property
    def is_alive(self) -> bool:
        return self.channel.is_usable

    async def ack(self) -> None:
        """Send the ack by the channel that the delivery came on; when that is gone, by none."""
        if self.process.is_dead:
            await self.process.world.loop.create_future()
        self.process.pass_by("before ack")
        if self.process.is_dead:
            return
        self.on_settled(self)
        self.channel.ack(self.tag)
        self.process.pass_by("acked")


class SimulatedLink:
    """Keeps a connection up."""

    def __init__(self, process: SimulatedProcess) -> None:
        self.process = process
        self.connection: Connection | None = None
        self.is_closed = False
        self._trouble = asyncio.Event()

    async def run(self, serve: Callable[[Connection], None], lose: Callable[[], None]) -> None:
        """Call `serve` with each connection, and `lose` when it is gone; returns once closed."""
        pause = FIRST_PAUSE
        world = self.process.world
        while not self.is_closed:
            await asyncio.sleep(world.latency())
            try:
                connection = self.process.connect()
            except BrokerUnavailableError:
                await asyncio.sleep(pause * (0.5 + world.random.random() / 2))
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._trouble.clear()
            connection.on_lost = lambda _: self._trouble.set()
            self.connection = connection
            serve(connection)
            try:
                await self._trouble.wait()
            finally:
                self.connection = None
                lose()

    async def close(self) -> None:
        """Close the connection; `run` returns."""
        self.is_closed = True
        if self.connection is not None and not self.process.is_dead:
            self.connection.close()
        self._trouble.set()


class SimulatedConsumption:
    """As `amqp.consumer.Consumption`: a channel for each queue, opened again whatever happens to it."""

    def __init__(
        self,
        process: SimulatedProcess,
        subscriptions: Sequence[Subscription],
        on_delivery: Callable[[Any], None],  # of a delivery, by shape
    ) -> None:
        self._process = process
        self._link = SimulatedLink(process)
        self._on_delivery = on_delivery
        self._consumers = {each.queue: _Consumer(each) for each in subscriptions}
        self._is_stopped = False

    async def run(self) -> None:
        await self._link.run(self._serve, self._forget)

    def stop_consuming(self) -> None:
        self._is_stopped = True
        for consumer in self._consumers.values():
            consumer.idle_since = None
            if consumer.channel is not None and not self._process.is_dead:
                consumer.channel.stop()

    async def close(self) -> None:
        self.stop_consuming()
        await self._link.close()

    def is_consuming(self, queue: str) -> bool:
        channel = self._consumers[queue].channel
        return channel is not None and channel.is_usable and not self._is_stopped

    @property
    def all_consuming(self) -> bool:
        return all(map(self.is_consuming, self._consumers))

    def states(self) -> dict[str, bool]:
        return {queue: self.is_consuming(queue) for queue in self._consumers}

    def idle_since(self, queue: str) -> float | None:
        return self._consumers[queue].idle_since

    async def ready_depth(self, queue: str) -> int | None:
        return None

    def _serve(self, connection: Connection) -> None:
        for consumer in self._consumers.values():
            self._open(connection, consumer)

    def _open(self, connection: Connection, consumer: _Consumer) -> None:
        if self._is_stopped or not connection.is_usable:
            return
        channel = connection.channel()
        consumer.channel, consumer.unsettled = channel, 0
        channel.on_delivery = partial(self._arrived, consumer)
        channel.on_lost = partial(self._lost, connection, consumer, channel)
        channel.consume(consumer.subscription.amqp_queue, prefetch=consumer.subscription.prefetch)
        consumer.count(self._process.world.loop.time())

    def _lost(self, connection: Connection, consumer: _Consumer, channel: Channel, reason: str) -> None:
        """Open another channel; one whose consumer is gone is closed, and what it holds goes back."""
        if consumer.channel is not channel:
            return
        consumer.channel = consumer.idle_since = None
        channel.close()
        loop, pause = self._process.world.loop, 0.1 + self._process.world.random.random()
        loop.call_later(pause, self._open, connection, consumer, context=self._process.context)

    def _forget(self) -> None:
        for consumer in self._consumers.values():
            consumer.channel = consumer.idle_since = None

    def _arrived(self, consumer: _Consumer, channel: Channel, tag: int, held: Held) -> None:
        if self._is_stopped:
            channel.reject(tag)  # was on its way when we stopped: others can have it
            return
        if channel is consumer.channel:
            consumer.unsettled += 1
            consumer.count(self._process.world.loop.time())
        queue = consumer.subscription.queue
        delivery = SimulatedDelivery(
            queue, channel, tag, held, self._process, partial(self._settled, consumer)
        )
        self._process.pass_by("delivered")
        if not self._process.is_dead:
            self._on_delivery(delivery)

    def _settled(self, consumer: _Consumer, delivery: SimulatedDelivery) -> None:
        if delivery.channel is consumer.channel:
            consumer.unsettled -= 1
            consumer.count(self._process.world.loop.time())


class _Consumer:
    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.channel: Channel | None = None
        self.unsettled = 0
        self.idle_since: float | None = None

    def count(self, now: float) -> None:
        """Note since when prefetch has been free."""
        if self.unsettled >= self.subscription.prefetch:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now


class SimulatedPublisher:
    """As `amqp.publisher.Publisher`: mandatory, confirmed, on a connection of its own."""

    def __init__(self, process: SimulatedProcess) -> None:
        self._process = process
        self._link = SimulatedLink(process)
        self._channel: Channel | None = None
        self._connected = asyncio.Event()

    async def run(self) -> None:
        await self._link.run(self._serve, self._forget)

    async def close(self) -> None:
        await self._link.close()

    async def publish(self, outgoing: Outgoing) -> None:
        loop = self._process.world.loop
        if self._process.is_dead:
            await loop.create_future()
        confirmed: asyncio.Future[None] = loop.create_future()
        try:
            async with asyncio.timeout(PUBLISH_WAIT):
                while not self.begin(outgoing, partial(self._answer, confirmed)):
                    await self._connected.wait()
                await confirmed
        except TimeoutError as error:
            raise PublishError("not confirmed in time") from error

    def begin(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        channel = self._channel
        if channel is None or not channel.is_usable or self._process.is_dead:
            self._connected.clear()
            return False
        self._process.pass_by("before publish")
        if self._process.is_dead:
            return True  # to nobody
        exchange, key = self._destination(outgoing)
        held = Held(outgoing.properties, outgoing.body, exchange, key)
        once = Answer(done)
        tag = channel.publish(held, once, mandatory=outgoing.kind is not Kind.EVENT)
        self._process.world.loop.call_later(
            PUBLISH_WAIT, self._give_up, channel, tag, once, context=self._process.context
        )
        self._process.pass_by("published")
        return True

    def _destination(self, outgoing: Outgoing) -> tuple[str, str]:
        topology = self._process.broker.topology
        match outgoing.kind:
            case Kind.COPY if outgoing.delay.total_seconds() > 0:
                rung = choose_rung(outgoing.delay, self._process.world.random.random())
                return topology.delay(rung), outgoing.routing_key
            case Kind.COPY:
                return topology.tasks_exchange, outgoing.routing_key
            case Kind.DEAD_LETTER:
                return topology.dead_letter_exchange, outgoing.routing_key
            case Kind.REPLY:
                return "", outgoing.routing_key
            case Kind.EVENT:
                return outgoing.exchange or EVENTS, outgoing.routing_key

    @staticmethod
    def _answer(confirmed: asyncio.Future[None], error: PublishError | None) -> None:
        if confirmed.done():
            return
        if error is None:
            confirmed.set_result(None)
        else:
            confirmed.set_exception(error)

    @staticmethod
    def _give_up(channel: Channel, tag: int, once: Answer) -> None:
        channel.forget(tag)
        once(PublishError("not confirmed in time"))

    def _serve(self, connection: Connection) -> None:
        self._channel = connection.channel()
        self._channel.on_lost = partial(self._lost, connection)
        self._connected.set()

    def _lost(self, connection: Connection, reason: str) -> None:
        self._channel = None
        if connection.is_usable:
            self._serve(connection)

    def _forget(self) -> None:
        self._channel = None

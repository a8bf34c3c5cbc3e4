"""RabbitMQ in memory: work queues with prefetch, delays, and what was sent elsewhere."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from broker_worker.errors import PublishError
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.task import Poisoning


@dataclass(eq=False, slots=True)
class MemoryDelivery:
    """One arrival; satisfies `ports.Delivery`."""

    queue: str
    properties: Properties
    body: bytes = field(repr=False)
    redelivered: bool = False
    poisoning: Poisoning | None = None
    channel: MemoryChannel | None = None

    @property
    def is_alive(self) -> bool:
        return self.channel is None or self.channel.is_open

    async def ack(self) -> None:
        if self.channel is not None:
            self.channel.settle(self)


class MemoryBroker:
    """Every queue, and what has left them; satisfies `ports.Publisher`.

    Delays are timers of the event loop: virtual on a `VirtualLoop`.
    """

    def __init__(self, queues: Collection[str]) -> None:
        self.dead_letters: list[Outgoing] = []
        self.replies: list[Outgoing] = []
        self.events: list[Outgoing] = []
        self.delayed = 0
        self._ready: dict[str, deque[MemoryDelivery]] = {queue: deque() for queue in queues}
        self._channels: deque[MemoryChannel] = deque()

    def ready(self, queue: str) -> int:
        """How many messages of `queue` wait for a consumer."""
        return len(self._ready[queue])

    def send(self, queue: str, properties: Properties, body: bytes) -> None:
        """Publish as any program does."""
        if queue not in self._ready:
            raise PublishError(f"no queue has the routing key {queue!r}")
        self._ready[queue].append(MemoryDelivery(queue, properties, body))
        self.hand_out()

    async def publish(self, outgoing: Outgoing) -> None:
        """Confirm at once; a copy that has to wait comes to its queue later."""
        match outgoing.kind:
            case Kind.DEAD_LETTER:
                self.dead_letters.append(outgoing)
            case Kind.REPLY:
                self.replies.append(outgoing)
            case Kind.EVENT:
                self.events.append(outgoing)
            case Kind.COPY if outgoing.routing_key not in self._ready:
                raise PublishError(f"no queue has the routing key {outgoing.routing_key!r}")
            case Kind.COPY:
                self.delayed += 1
                seconds = outgoing.delay.total_seconds()
                asyncio.get_running_loop().call_later(seconds, self._arrive, outgoing)

    def begin(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:  # noqa: ARG002
        """Leave it to `publish`, which waits for nothing."""
        return False

    def consume(self, queue: str, take: Callable[[MemoryDelivery], None], *, prefetch: int) -> MemoryChannel:
        """Hand deliveries of `queue` to `take`, at most `prefetch` of them unsettled."""
        channel = MemoryChannel(self, queue, take, prefetch)
        self._channels.append(channel)
        self.hand_out()
        return channel

    def give_back(self, channel: MemoryChannel, unsettled: Collection[MemoryDelivery]) -> None:
        """Deliver again what a channel left unsettled when it was lost."""
        for delivery in reversed(list(unsettled)):
            again = MemoryDelivery(delivery.queue, delivery.properties, delivery.body, redelivered=True)
            self._ready[delivery.queue].appendleft(again)
        self._channels.remove(channel)
        self.hand_out()

    def hand_out(self) -> None:
        """Give consumers with room what is ready."""
        self._channels.rotate()  # the next message goes to another consumer, as in RabbitMQ
        for channel in list(self._channels):
            ready = self._ready[channel.queue]
            while ready and channel.has_room:
                channel.deliver(ready.popleft())

    def _arrive(self, outgoing: Outgoing) -> None:
        self.delayed -= 1
        self.send(outgoing.routing_key, outgoing.properties, outgoing.body)


class MemoryChannel:
    """One consumer, and what it has not settled."""

    def __init__(
        self, broker: MemoryBroker, queue: str, take: Callable[[MemoryDelivery], None], prefetch: int
    ) -> None:
        self.queue = queue
        self.is_open = True
        self.unsettled: list[MemoryDelivery] = []
        self._broker = broker
        self._take = take
        self._prefetch = prefetch
        self._is_consuming = True

    @property
    def has_room(self) -> bool:
        """Whether another delivery may come."""
        return self._is_consuming and len(self.unsettled) < self._prefetch

    def deliver(self, delivery: MemoryDelivery) -> None:
        """Hand out one delivery."""
        delivery.channel = self
        self.unsettled.append(delivery)
        self._take(delivery)

    def settle(self, delivery: MemoryDelivery) -> None:
        """Forget a delivery that was acked; on a closed channel nothing happens."""
        if self.is_open and delivery in self.unsettled:
            self.unsettled.remove(delivery)
            self._broker.hand_out()

    def stop_consuming(self) -> None:
        """Take no more; what is unsettled can still be acked."""
        self._is_consuming = False

    def close(self) -> None:
        """Lose the channel: what is unsettled is delivered again, first."""
        self.is_open = self._is_consuming = False
        self._broker.give_back(self, self.unsettled)
        self.unsettled = []

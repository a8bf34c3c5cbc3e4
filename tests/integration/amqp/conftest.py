from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from broker_worker.amqp import declaration
from broker_worker.amqp.connection import Connection, Link, connected
from broker_worker.amqp.consumer import Consumption, Declare, Subscription
from broker_worker.amqp.delivery import AmqpDelivery
from broker_worker.amqp.publisher import Publisher
from broker_worker.amqp.topology import Topology
from broker_worker.events import ConsumerChanged, Event
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from tests.support.management import Control
from tests.support.services import Broker

SECONDS = 30.0  # for what takes one of them: the machine may be busy


@dataclass
class Events:
    """What was emitted, and a way to wait for it."""

    seen: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def emit(self, event: Event) -> None:
        self.seen.append(event)
        self.changed.set()

    async def until(
        self, wanted: Callable[[Event], bool], *, times: int = 1, within: float = SECONDS
    ) -> None:
        async with asyncio.timeout(within):
            while sum(map(wanted, self.seen)) < times:
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Service:
    """A consumption and a publisher on one virtual host, running."""

    url: str
    topology: Topology
    events: Events
    consumption: Consumption
    publisher: Publisher
    deliveries: asyncio.Queue[AmqpDelivery]

    async def publish(self, body: bytes = b"{}", *, queue: str = "default", delay: float = 0) -> None:
        copy = Outgoing(
            Kind.COPY, queue, Properties(type="t", message_id="m"), body, timedelta(seconds=delay)
        )
        await self.publisher.publish(copy)

    async def next(self, *, within: float = SECONDS) -> AmqpDelivery:
        async with asyncio.timeout(within):
            return await self.deliveries.get()

    async def is_consuming(self, queue: str = "default", *, times: int = 1, within: float = SECONDS) -> None:
        """Wait until the consumer of `queue` has come up for the `times`th time."""
        await self.events.until(
            lambda event: isinstance(event, ConsumerChanged) and event.queue == queue and event.is_up,
            times=times,
            within=within,
        )


@pytest.fixture
def control(broker: Broker) -> Control:
    if broker.management_url is None:
        pytest.fail("this test needs RabbitMQ's HTTP API, which the given broker does not have")
    return Control(broker.management_url, broker.vhost)


@pytest.fixture
def topology(broker: Broker) -> Topology:
    return Topology(broker.prefix, ["default"], rungs=(timedelta(seconds=1), timedelta(seconds=2)))


@pytest.fixture
async def declared(broker: Broker, topology: Topology) -> Topology:
    async with connected(broker.url, "test declare") as connection:
        await declaration.declare(connection, topology)
    return topology


@pytest.fixture
async def serve(broker: Broker, declared: Topology) -> AsyncIterator[Callable[..., Service]]:
    """Start services, and stop them after the test."""
    async with asyncio.TaskGroup() as group:
        services: list[Service] = []

        def start(
            *,
            url: str = broker.url,
            subscriptions: Sequence[Subscription] | None = None,
            prefetch: int = 10,
            may_declare: bool = True,
        ) -> Service:
            events, deliveries = Events(), asyncio.Queue[AmqpDelivery]()
            wanted = subscriptions
            if wanted is None:
                wanted = [Subscription(name, declared.work_queue(name), prefetch) for name in declared.queues]
            declare = declare_for(declared) if may_declare else None
            consumption = Consumption(
                Link("consume", lambda: url, events.emit),
                declared,
                wanted,
                on_delivery=deliveries.put_nowait,
                emit=events.emit,
                declare=declare,
            )
            publisher = Publisher(
                Link("publish", lambda: url, events.emit), declared, emit=events.emit, declare=declare
            )
            group.create_task(consumption.run())
            group.create_task(publisher.run())
            service = Service(url, declared, events, consumption, publisher, deliveries)
            services.append(service)
            return service

        yield start
        for service in services:
            await service.consumption.close()
            await service.publisher.close()


def declare_for(topology: Topology) -> Declare:
    async def declare(connection: Connection) -> Sequence[str]:
        return await declaration.declare(connection, topology)

    return declare

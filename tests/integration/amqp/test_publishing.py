from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import Connection, Link, connected
from broker_worker.amqp.consumer import Subscription
from broker_worker.amqp.publisher import Publisher
from broker_worker.amqp.topology import Topology
from broker_worker.errors import PublishError, UnsentError
from broker_worker.events import ConnectionChanged, TopologyRepaired
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from tests.integration.amqp.conftest import Service
from tests.integration.amqp.test_consuming import delete_queue
from tests.support.management import Control
from tests.support.services import Broker

SECOND = timedelta(seconds=1)
Start = Callable[..., Service]


class WatchedLink(Link):
    """Shows how many channels its connection has."""

    def channels(self) -> int:
        assert self._connection is not None
        return len(self._connection.wire.channels)


@pytest.fixture
def link(broker: Broker) -> WatchedLink:
    return WatchedLink("publish", lambda: broker.url, lambda _: None)


@pytest.fixture
async def publishing(link: WatchedLink, declared: Topology) -> AsyncIterator[Callable[..., Publisher]]:
    """Start publishers of a test's own making, and stop them after the test."""
    async with asyncio.TaskGroup() as group:

        def start(**how: Any) -> Publisher:  # noqa: ANN401 - arguments of Publisher
            publisher = Publisher(link, declared, emit=lambda _: None, **how)
            group.create_task(publisher.run())
            return publisher

        yield start
        await link.close()


def copy(**headers: object) -> Outgoing:
    return Outgoing(Kind.COPY, "default", Properties(type="t", headers=headers), b"{}")


async def delete_exchange(url: str, name: str) -> None:
    async with connected(url, "test delete") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        await channel.exchange_delete(name)


def event(exchange: str, routing_key: str = "order.billed", body: bytes = b"event") -> Outgoing:
    properties = Properties(content_type="application/json", headers={"bw-event-id": "e-1"})
    return Outgoing(Kind.EVENT, routing_key, properties, body, exchange=exchange)


async def make_exchange(service: Service, *names: str, key: str = "order.*") -> None:
    """Declare exchanges of an author's, each bound to the work queue."""
    async with connected(service.url, "test exchange") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        for name in names:
            await channel.exchange_declare(name, exchange_type="topic")
            await channel.queue_bind(service.topology.work_queue("default"), name, key)


async def test_a_publish_to_a_bound_queue_is_confirmed(serve: Start) -> None:
    service = serve()

    await service.publish(b"here")

    assert (await service.next()).body == b"here"


async def test_a_returned_publish_raises(serve: Start) -> None:
    service = serve()

    with pytest.raises(PublishError, match="no queue for key 'nowhere'"):
        await service.publisher.publish(Outgoing(Kind.REPLY, "nowhere", Properties(), b"{}"))


async def test_many_publishes_at_once_are_told_apart(serve: Start) -> None:
    service = serve(prefetch=500)
    replies = [
        Outgoing(Kind.REPLY, name, Properties(), b"{}")
        for name in (service.topology.work_queue("default"), "nowhere") * 200
    ]

    results = await asyncio.gather(*map(service.publisher.publish, replies), return_exceptions=True)

    assert [type(result) for result in results] == [type(None), PublishError] * 200


async def test_a_delayed_copy_comes_back_through_its_rung(serve: Start) -> None:
    service = serve()
    loop = asyncio.get_running_loop()
    began = loop.time()

    await service.publish(b"later", delay=1)

    delivery = await service.next()
    assert loop.time() - began >= 0.9
    assert (delivery.body, delivery.exchange, delivery.routing_key) == (
        b"later",
        service.topology.return_exchange,
        "default",
    )
    assert delivery.poisoning is None


async def test_a_rung_returns_to_the_last_resort_what_no_longer_has_a_queue(
    serve: Start, declared: Topology
) -> None:
    service = serve(subscriptions=[Subscription("unroutable", declared.unroutable, 50)])
    for number in range(40):
        await service.publish(b"%d" % number, queue="gone", delay=1)

    arrived = [(await service.next()) for _ in range(40)]

    assert {delivery.body for delivery in arrived} == {b"%d" % number for number in range(40)}
    assert {delivery.routing_key for delivery in arrived} == {"gone"}


async def test_a_dead_letter_reaches_the_dead_queue_of_its_queue(serve: Start, declared: Topology) -> None:
    service = serve(subscriptions=[Subscription("default", declared.dead_queue("default"), 5)])
    key = "default.gave_up." + "é" * 200

    await service.publisher.publish(Outgoing(Kind.DEAD_LETTER, key, Properties(type="t"), b"dead"))

    delivery = await service.next()
    assert delivery.body == b"dead"
    assert key.startswith(delivery.routing_key)
    assert len(delivery.routing_key.encode()) in (254, 255)
    assert delivery.poisoning is None


async def test_scalar_headers_arrive_as_they_were(serve: Start) -> None:
    service = serve()
    headers: dict[str, object] = {
        "float": 0.1,
        "int": 2**63 - 1,
        "text": "é" * 500,
        "bytes": b"\xff\x00",
        "none": None,
        "bool": True,
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "decimal": Decimal("1.25"),
        "k" * 255: "long name",
    }

    await service.publisher.publish(copy(**headers))

    assert (await service.next()).properties.headers == headers


async def test_a_task_name_too_long_for_its_property_travels_as_a_header(serve: Start) -> None:
    service = serve()
    name = "é" * 200

    await service.publisher.publish(Outgoing(Kind.COPY, "default", Properties(type=name), b"{}"))

    properties = (await service.next()).properties
    assert (properties.type, properties.headers) == (None, {"task-type": name})


UNENCODABLE: dict[str, object] = {
    "an integer above 64 bits": 2**63,
    "an integer below 64 bits": -(2**63) - 1,
    "an object": object(),
    "a set": {1, 2},
    "a decimal with 300 places": Decimal("1e-300"),
    "a decimal that is no number": Decimal("NaN"),
    "half of a character": "\ud800",
    "an object deep inside": {"a": {"b": object()}},
}


@pytest.mark.parametrize("case", UNENCODABLE)
async def test_what_amqp_cannot_carry_raises_and_harms_nobody_else(case: str, serve: Start) -> None:
    service = serve()

    with pytest.raises(PublishError, match="AMQP can't carry the header 'bad'"):
        await service.publisher.publish(copy(bad=UNENCODABLE[case]))

    await service.publish(b"good")
    assert (await service.next()).body == b"good"


async def test_headers_beyond_a_frame_raise_and_the_connection_stays(serve: Start) -> None:
    service = serve()

    with pytest.raises(PublishError, match="more than AMQP can carry"):
        await service.publisher.publish(copy(huge="x" * 200_000))

    await service.publisher.publish(copy(just="x" * 130_900))
    assert len((await service.next()).properties.headers) == 1
    assert not any(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_a_channel_closed_for_a_missing_exchange_is_repaired(serve: Start, broker: Broker) -> None:
    service = serve()
    await service.is_consuming()
    await service.publish(b"before")
    await delete_exchange(broker.url, service.topology.delay(SECOND))

    with pytest.raises(PublishError, match=r"\.delay\.1000"):
        await service.publish(b"lost", delay=1)

    await service.events.until(lambda e: e == TopologyRepaired(f"exchange {service.topology.delay(SECOND)}"))
    await service.publish(b"again", delay=1)
    assert [(await service.next()).body for _ in range(2)] == [b"before", b"again"]
    assert not any(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_a_missing_delay_queue_is_repaired(serve: Start, broker: Broker) -> None:
    service = serve()
    await service.is_consuming()
    await delete_queue(broker.url, service.topology.delay(SECOND))

    with pytest.raises(PublishError, match="returned by the broker"):
        await service.publish(b"returned", delay=1)

    await service.events.until(lambda e: e == TopologyRepaired(f"queue {service.topology.delay(SECOND)}"))
    await service.publish(b"again", delay=1)
    assert (await service.next()).body == b"again"


async def test_a_missing_exchange_harms_no_publish_to_another(serve: Start, broker: Broker) -> None:
    service = serve(may_declare=False, prefetch=500)
    await delete_exchange(broker.url, service.topology.delay(SECOND))

    async def delayed() -> None:
        with pytest.raises(PublishError):
            await service.publish(b"lost", delay=1)

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(delayed())
            group.create_task(service.publish(b"good"))

    assert [(await service.next()).body for _ in range(100)] == [b"good"] * 100
    assert not any(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_publishes_wait_for_a_connection_that_comes_back(serve: Start, control: Control) -> None:
    service = serve()
    await service.publish(b"before")
    await control.close_connections(at_least=2)

    await service.events.until(
        lambda e: isinstance(e, ConnectionChanged) and not e.is_up and e.link == "publish"
    )
    await service.publish(b"after")

    while (await service.next()).body != b"after":
        pass  # what was unsettled comes again


async def test_a_publish_without_a_broker_fails_at_its_deadline(declared: Topology) -> None:
    publisher = Publisher(
        Link("publish", lambda: "amqp://nobody:x@127.0.0.1:1/", lambda _: None),
        declared,
        emit=lambda _: None,
        deadline=0.3,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(publisher.run())

        with pytest.raises(UnsentError, match="no answer in time"):
            await publisher.publish(copy())

        await publisher.close()


async def test_the_delay_is_a_timedelta_of_any_size(serve: Start) -> None:
    service = serve()

    await service.publisher.publish(
        Outgoing(Kind.COPY, "default", Properties(type="t"), b"soon", timedelta(microseconds=1))
    )

    assert (await service.next()).body == b"soon"


# --- events ----------------------------------------------------------------------


async def test_an_event_goes_to_its_exchange_as_it_stands(serve: Start, broker: Broker) -> None:
    service = serve()
    orders = f"{broker.prefix}.test.orders"
    await make_exchange(service, orders)

    await service.publisher.publish(event(orders))

    delivery = await service.next()
    assert (delivery.exchange, delivery.routing_key, delivery.body) == (orders, "order.billed", b"event")
    assert delivery.properties.headers == {"bw-event-id": "e-1"}
    assert delivery.properties.content_type == "application/json"


async def test_an_event_that_nobody_is_bound_for_is_confirmed(serve: Start, broker: Broker) -> None:
    service = serve()
    orders = f"{broker.prefix}.test.orders"
    await make_exchange(service, orders)

    await service.publisher.publish(event(orders, "nobody.listens"))
    await service.publisher.publish(event("", "no-such-queue"))

    await service.publish(b"after")
    assert (await service.next()).body == b"after"


async def test_an_event_to_the_default_exchange_reaches_the_queue_of_its_key(serve: Start) -> None:
    service = serve()

    await service.publisher.publish(event("", service.topology.work_queue("default")))

    assert (await service.next()).exchange == ""


async def test_an_event_to_a_missing_exchange_fails_alone_until_it_is_there(
    serve: Start, broker: Broker
) -> None:
    service = serve(prefetch=500)
    orders, missing = (f"{broker.prefix}.test.{name}" for name in ("orders", "missing"))
    await make_exchange(service, orders)

    async def lost() -> None:
        with pytest.raises(PublishError, match="missing"):
            await service.publisher.publish(event(missing))

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(lost())
            group.create_task(service.publish(b"copy"))
            group.create_task(service.publisher.publish(event(orders)))

    bodies = [(await service.next()).body for _ in range(100)]
    assert sorted(bodies) == [b"copy"] * 50 + [b"event"] * 50
    await make_exchange(service, missing)
    await service.publisher.publish(event(missing))
    assert (await service.next()).exchange == missing
    assert not any(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_an_exchange_of_an_authors_is_not_repaired(
    broker: Broker, declared: Topology, publishing: Callable[..., Publisher]
) -> None:
    repairs = []

    async def declare(_: Connection) -> list[str]:
        repairs.append("begun")
        return []

    publisher = publishing(declare=declare)

    with pytest.raises(PublishError, match="missing"):
        await publisher.publish(event(f"{broker.prefix}.test.missing"))
    await publisher.publish(event("", "no-such-queue"))
    before = list(repairs)
    await delete_exchange(broker.url, declared.delay(SECOND))
    with pytest.raises(PublishError):
        await publisher.publish(Outgoing(Kind.COPY, "default", Properties(type="t"), b"{}", SECOND))
    await publisher.publish(event("", "no-such-queue"))

    assert (before, repairs) == ([], ["begun"])


@pytest.mark.parametrize(("exchange", "key"), [("é" * 128, "key"), ("", "é" * 128)], ids=["exchange", "key"])
async def test_an_event_with_a_name_too_long_fails_alone(serve: Start, exchange: str, key: str) -> None:
    service = serve()

    with pytest.raises(PublishError, match="more than 255 bytes"):
        await service.publisher.publish(event(exchange, key))

    await service.publish(b"good")
    assert (await service.next()).body == b"good"


async def test_any_number_of_exchanges_uses_a_bounded_number_of_channels(
    serve: Start, broker: Broker, publishing: Callable[..., Publisher], link: WatchedLink
) -> None:
    service = serve(prefetch=500)
    names = [f"{broker.prefix}.test.{number}" for number in range(30)]
    await make_exchange(service, *names)
    publisher = publishing(most_channels=4)

    for name in names:
        await publisher.publish(event(name))
    channels = link.channels()
    await asyncio.gather(*(publisher.publish(event(name)) for name in names * 10))
    await publisher.publish(event(f"{broker.prefix}.test.0", body=b"x" * 2_000_000))
    for name in names:
        await publisher.publish(event(name))

    assert (channels, link.channels()) == (4, 4)
    assert len([await service.next() for _ in range(361)]) == 361

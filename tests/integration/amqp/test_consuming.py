from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from pamqp import commands

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import connected
from broker_worker.amqp.consumer import Subscription
from broker_worker.amqp.topology import Topology
from broker_worker.events import ConnectionChanged, ConsumerChanged, TopologyRepaired
from tests.integration.amqp.conftest import Service
from tests.integration.amqp.test_connecting import at_port
from tests.support.hostile_headers import HOSTILE, ODD
from tests.support.management import Control
from tests.support.proxy import Unwatched, Write, proxy_to
from tests.support.raw_amqp import raw_publisher
from tests.support.services import Broker

Start = Callable[..., Service]
CLOSE_CHANNEL = struct.pack(">I", commands.Channel.Close.index)


async def delete_queue(url: str, name: str) -> None:
    async with connected(url, "test delete") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        await channel.queue_delete(name)


async def test_a_published_message_arrives_as_it_was_sent(serve: Start, declared: Topology) -> None:
    service = serve()

    await service.publish(b"\x00\xffbody" * 50_000)

    delivery = await service.next()
    assert delivery.body == b"\x00\xffbody" * 50_000
    assert (delivery.queue, delivery.routing_key, delivery.exchange) == (
        "default",
        "default",
        declared.tasks_exchange,
    )
    assert delivery.properties.type == "t"
    assert not delivery.redelivered
    assert delivery.poisoning is None


async def test_no_more_than_the_prefetch_is_unsettled_at_once(serve: Start) -> None:
    service = serve(prefetch=3)
    await service.is_consuming()
    for _ in range(5):
        await service.publish()

    held = [await service.next() for _ in range(3)]

    assert service.consumption.unsettled("default") == 3
    assert service.consumption.idle_since("default") is None
    assert service.deliveries.empty()
    for delivery in held:
        await delivery.ack()
    await asyncio.sleep(0)  # acks leave at the end of a turn of the loop
    assert service.consumption.idle_since("default") is not None
    await service.next()
    await service.next()


async def test_the_ready_depth_counts_what_is_not_delivered(serve: Start) -> None:
    service = serve(prefetch=1)
    await service.is_consuming()
    for _ in range(3):
        await service.publish()
    await service.next()

    assert await service.consumption.ready_depth("default") == 2


async def test_an_ack_on_a_dead_channel_is_dropped_and_the_message_comes_again(
    serve: Start, control: Control
) -> None:
    service = serve()
    await service.publish(b"again")
    delivery = await service.next()
    await control.close_connections(at_least=2)
    again = await service.next()

    await delivery.ack()

    assert not delivery.is_alive
    assert again.body == b"again"
    assert again.redelivered
    assert again.is_alive
    assert service.consumption.unsettled("default") == 1


async def test_a_connection_closed_by_the_broker_is_made_again(serve: Start, control: Control) -> None:
    service = serve()
    await service.is_consuming()

    await control.close_connections(at_least=2)

    await service.is_consuming(times=2)
    await service.publish(b"after")
    assert (await service.next()).body == b"after"
    ups = [e.is_up for e in service.events.seen if isinstance(e, ConnectionChanged) and e.link == "consume"]
    assert ups == [True, False, True]


async def test_a_deleted_queue_is_declared_and_consumed_again(
    serve: Start, broker: Broker, declared: Topology
) -> None:
    service = serve()
    await service.is_consuming()

    await delete_queue(broker.url, declared.work_queue("default"))

    await service.is_consuming(times=2)
    await service.publish(b"after")
    assert (await service.next()).body == b"after"
    assert TopologyRepaired(f"queue {declared.work_queue('default')}") in service.events.seen
    assert not any(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_without_the_right_to_declare_a_queue_is_consumed_again_once_somebody_declares_it(
    serve: Start, broker: Broker, declared: Topology
) -> None:
    service = serve(may_declare=False)
    await service.is_consuming()
    await delete_queue(broker.url, declared.work_queue("default"))
    await service.events.until(lambda e: isinstance(e, ConsumerChanged) and not e.is_up)
    assert not service.consumption.all_consuming

    serve()

    await service.is_consuming(times=2)
    assert service.consumption.all_consuming


async def test_a_channel_closed_by_the_broker_is_replaced_and_other_queues_go_on(
    serve: Start, declared: Topology
) -> None:
    service = serve(
        subscriptions=[
            Subscription("default", declared.work_queue("default"), 5),
            Subscription("unroutable", declared.unroutable, 5),
        ]
    )
    await service.is_consuming("default")
    await service.is_consuming("unroutable")
    await service.publish(b"held", queue="nobody")
    held = await service.next()
    await service.publish(b"victim")
    victim = await service.next()

    await victim._acker._channel.basic_ack(4711, wait=False)

    assert (await service.next()).body == b"victim"
    assert held.is_alive
    assert not victim.is_alive


class LateGoodbyes(Unwatched):
    """Keeps back what the broker answers from the next close of a channel on."""

    def __init__(self) -> None:
        self.is_waiting = False
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def from_client(self, data: bytes, write: Write) -> None:
        if self.is_waiting and CLOSE_CHANNEL in data:
            self.asked.set()
        await write(data)

    async def from_server(self, data: bytes, write: Write) -> None:
        if self.asked.is_set():
            await self.answers.wait()
        await write(data)


async def test_what_ends_while_its_channel_is_being_closed_costs_no_connection(
    serve: Start, broker: Broker, declared: Topology
) -> None:
    parts, watch = urlsplit(broker.url), LateGoodbyes()
    async with proxy_to(parts.hostname or "", parts.port or 0, lambda: watch) as proxy:
        service = serve(url=at_port(broker.url, proxy.port))
        await service.is_consuming()
        await service.publish()
        running = await service.next()
        watch.is_waiting = True
        await delete_queue(broker.url, declared.work_queue("default"))
        await watch.asked.wait()

        await running.ack()
        await asyncio.sleep(0)  # acks go out at the end of a turn
        watch.answers.set()

        await service.is_consuming(times=2)
        assert not any(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_after_stop_consuming_acks_still_reach_the_broker_and_nothing_more_comes(
    serve: Start, control: Control
) -> None:
    service = serve(prefetch=2)
    await service.publish(b"running")
    running = await service.next()

    service.consumption.stop_consuming()
    await service.publish(b"for another")
    await running.ack()

    assert not service.consumption.all_consuming
    assert service.consumption.idle_since("default") is None
    other = serve()
    assert (await other.next()).body == b"for another"
    assert service.deliveries.empty()
    assert service.consumption.unsettled("default") == 0


async def test_a_connection_lost_after_stop_consuming_brings_no_more_deliveries(
    serve: Start, control: Control
) -> None:
    service = serve()
    await service.publish(b"running")
    await service.next()
    service.consumption.stop_consuming()

    await control.close_connections(at_least=2)

    await service.events.until(
        lambda e: isinstance(e, ConnectionChanged) and e.is_up and e.link == "consume", times=2
    )
    other = serve()
    assert (await other.next()).body == b"running"
    assert service.deliveries.empty()
    assert not service.consumption.all_consuming


async def test_what_was_acked_just_before_the_end_is_not_delivered_again(serve: Start) -> None:
    service = serve(prefetch=100)
    for _ in range(50):
        await service.publish()
    for _ in range(50):
        await (await service.next()).ack()

    await service.consumption.close()

    other = serve()
    await other.is_consuming()
    assert await other.consumption.ready_depth("default") == 0
    assert other.deliveries.empty()


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_message_arrives_can_be_acked_and_holds_nobody_up(case: str, serve: Start) -> None:
    service = serve(prefetch=1)
    async with raw_publisher(service.url) as publisher:
        flags, properties = HOSTILE[case]
        answer = await publisher.publish(
            service.topology.tasks_exchange, b"default", flags=flags, properties=properties, body=b"bad"
        )
    assert answer.name == "Basic.Ack"

    hostile = await service.next()

    assert hostile.body == b"bad"
    assert hostile.properties.broken is not None
    await hostile.ack()
    await service.publish(b"good")
    good = await service.next()
    assert (good.body, good.redelivered) == (b"good", False)


@pytest.mark.parametrize("case", ODD)
async def test_an_odd_but_healthy_message_arrives_whole(case: str, serve: Start) -> None:
    service = serve()
    async with raw_publisher(service.url) as publisher:
        flags, properties = ODD[case]
        answer = await publisher.publish(
            service.topology.tasks_exchange, b"default", flags=flags, properties=properties, body=b"odd"
        )
    assert answer.name == "Basic.Ack"

    delivery = await service.next()

    assert delivery.properties.broken is None
    assert delivery.properties.headers


async def test_a_routing_key_that_is_not_utf8_is_read_with_replacements(
    serve: Start, declared: Topology
) -> None:
    service = serve(subscriptions=[Subscription("unroutable", declared.unroutable, 5)])
    async with raw_publisher(service.url) as publisher:
        await publisher.publish(service.topology.tasks_exchange, b"\xffkey", body=b"lost")

    delivery = await service.next()

    assert (delivery.routing_key, delivery.body) == ("\ufffdkey", b"lost")

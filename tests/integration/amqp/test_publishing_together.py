"""Publishes that are under way together: nothing is mixed up, whatever its size, and nobody waits in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from aiormq.exceptions import DeliveryError

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import Connection, connected
from broker_worker.amqp.properties import EncodedProperties, encode_properties
from broker_worker.amqp.publishing_channel import LARGE_WRITE, PublishingChannel, ReturnedError
from broker_worker.amqp.topology import Topology
from broker_worker.errors import PublishError
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from tests.integration.amqp.conftest import Service
from tests.support.services import Broker

Start = Callable[..., Service]
QUORUM = {"x-queue-type": "quorum"}
# a quorum queue tells channels that it is full some time later
FULL_AT_ONCE: Mapping[str, int | str] = {
    "x-queue-type": "classic",
    "x-max-length": 1,
    "x-overflow": "reject-publish",
}
FRAME = 131072 - 8  # bytes of a body that fit into one frame as RabbitMQ grants it


def properties() -> EncodedProperties:
    return encode_properties(Properties(type="t"))


@asynccontextmanager
async def publishing(broker: Broker) -> AsyncIterator[tuple[Connection, PublishingChannel]]:
    async with connected(broker.url, "test publishing") as connection:
        yield connection, await open_channel(connection.wire, PublishingChannel)


async def publish(channel: PublishingChannel, queue: str, body: bytes = b"{}") -> None:
    await channel.publish(body, exchange="", routing_key=queue, properties=properties(), mandatory=True)


async def a_queue(connection: Connection, name: str, arguments: Mapping[str, int | str] = QUORUM) -> None:
    channel = await open_channel(connection.wire, plain_channel)
    await channel.queue_declare(name, durable=True, arguments=dict(arguments))


@pytest.mark.parametrize(
    "size",
    [0, 1, LARGE_WRITE - 1, LARGE_WRITE, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 5 * FRAME + 7],
)
async def test_a_body_of_any_size_arrives_whole_among_small_ones(serve: Start, size: int) -> None:
    service = serve(prefetch=50)
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]

    await asyncio.gather(*(service.publish(each) for each in [b"small"] * 10 + [body] * 3 + [b"small"] * 10))

    arrived = [(await service.next()).body for _ in range(23)]
    assert sorted(arrived, key=len) == sorted([b"small"] * 20 + [body] * 3, key=len)


async def test_what_is_published_together_arrives_in_its_order(serve: Start) -> None:
    service = serve(prefetch=300)
    bodies = [b"%d" % number for number in range(150)]

    await asyncio.gather(*(service.publish(body) for body in bodies))

    assert [(await service.next()).body for _ in bodies] == bodies


async def test_more_than_the_writer_takes_at_once_is_written_later(serve: Start, declared: Topology) -> None:
    """The writer's queue has ten places, and each channel needs one."""
    service = serve(prefetch=500)
    queue = declared.work_queue("default")
    async with connected(service.url, "test full") as connection:
        channels = [await open_channel(connection.wire, PublishingChannel) for _ in range(40)]
        await asyncio.gather(
            *(publish(channel, queue, b"%d" % number) for number, channel in enumerate(channels))
        )

    assert {(await service.next()).body for _ in channels} == {b"%d" % number for number in range(40)}


async def test_a_full_queue_refuses_and_the_others_are_confirmed(broker: Broker) -> None:
    async with publishing(broker) as (connection, channel):
        full, free = f"{broker.prefix}.test.full", f"{broker.prefix}.test.free"
        await a_queue(connection, full, FULL_AT_ONCE)
        await a_queue(connection, free)

        outcomes = await asyncio.gather(
            *(publish(channel, name) for _ in range(100) for name in (full, free)), return_exceptions=True
        )

    assert set(map(type, outcomes[1::2])) == {type(None)}
    assert [type(outcome) for outcome in outcomes[::2]] == [type(None), *[DeliveryError] * 99]


async def test_what_is_returned_is_told_among_what_is_confirmed(broker: Broker) -> None:
    async with publishing(broker) as (connection, channel):
        there = f"{broker.prefix}.test.there"
        await a_queue(connection, there)

        outcomes = await asyncio.gather(
            *(publish(channel, name) for _ in range(100) for name in (there, "nowhere")),
            return_exceptions=True,
        )

    assert [type(outcome) for outcome in outcomes] == [type(None), ReturnedError] * 100


async def test_who_gave_up_waiting_leaves_the_channel_as_good_as_before(broker: Broker) -> None:
    async with publishing(broker) as (connection, channel):
        there = f"{broker.prefix}.test.there"
        await a_queue(connection, there)
        leaving = [asyncio.create_task(publish(channel, name)) for name in (there, "nowhere") * 20]
        leaving.append(asyncio.create_task(publish(channel, there, b"x" * 1_000_000)))
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)

        outcomes = await asyncio.gather(
            *(publish(channel, name) for name in (there, "nowhere") * 20), return_exceptions=True
        )
        assert channel.is_alive

    assert [type(outcome) for outcome in outcomes] == [type(None), ReturnedError] * 20


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "large"])
async def test_a_dropped_connection_tells_all_who_wait(broker: Broker, size: int) -> None:
    async with publishing(broker) as (connection, channel):
        there = f"{broker.prefix}.test.there"
        await a_queue(connection, there)
        waiting = [asyncio.create_task(publish(channel, there, b"x" * size)) for _ in range(20)]
        await asyncio.sleep(0)
        connection.abort()

        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(outcome, Exception) for outcome in outcomes)


async def test_nothing_is_written_once_the_channel_is_being_closed(broker: Broker) -> None:
    """One frame on a channel that the broker has forgotten would end the whole connection."""
    async with publishing(broker) as (connection, channel):
        there = f"{broker.prefix}.test.there"
        await a_queue(connection, there)
        waiting = [asyncio.create_task(publish(channel, there)) for _ in range(20)]
        await asyncio.sleep(0)
        await channel.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(Exception, match="closed"):
            await publish(channel, there)

        again = await open_channel(connection.wire, PublishingChannel)
        await publish(again, there)

    assert all(isinstance(outcome, Exception) for outcome in outcomes)


@pytest.mark.parametrize("name", ["é" * 128, "\ud800"], ids=["too long", "half of a character"])
async def test_a_name_that_amqp_cannot_carry_raises_and_harms_nobody_else(serve: Start, name: str) -> None:
    service = serve()

    with pytest.raises(PublishError, match="AMQP can't carry the name"):
        await service.publisher.publish(Outgoing(Kind.REPLY, name, Properties(), b"{}"))

    await service.publish(b"good")
    assert (await service.next()).body == b"good"

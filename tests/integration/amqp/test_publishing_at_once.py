"""Publishes that are begun without a task of their own: each ends as one that is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import Link, connected
from broker_worker.amqp.publisher import UNCONFIRMED, Publisher
from broker_worker.amqp.topology import Topology
from broker_worker.errors import PublishError
from broker_worker.events import TopologyRepaired
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from tests.integration.amqp.conftest import Service
from tests.support.proxy import Proxy, proxy_to
from tests.support.services import Broker

Start = Callable[..., Service]
TYPED = Properties(type="t")
Answer = asyncio.Future[PublishError | None]


def copy(body: bytes = b"{}", properties: Properties = TYPED) -> Outgoing:
    return Outgoing(Kind.COPY, "default", properties, body)


@asynccontextmanager
async def through_a_proxy(broker: Broker) -> AsyncIterator[tuple[Proxy, str]]:
    parts = urlsplit(broker.url)
    async with proxy_to(parts.hostname or "", parts.port or 0) as proxy:
        netloc = f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}"
        yield proxy, parts._replace(netloc=netloc).geturl()


def begun(publisher: Publisher, outgoing: Outgoing) -> Answer | None:
    answer: Answer = asyncio.get_running_loop().create_future()
    return answer if publisher.begin(outgoing, answer.set_result) else None


def all_begun(publisher: Publisher, *several: Outgoing) -> list[Answer]:
    answers = [begun(publisher, each) for each in several]
    assert None not in answers
    return [answer for answer in answers if answer is not None]


async def test_it_is_told_when_the_broker_has_confirmed_it(serve: Start) -> None:
    service = serve()
    await service.publish(b"opens the channel")
    assert (await service.next()).body == b"opens the channel"

    (answer,) = all_begun(service.publisher, copy(b"here"))
    assert not answer.done()

    assert await answer is None
    assert (await service.next()).body == b"here"


async def test_what_is_begun_together_arrives_in_its_order(serve: Start) -> None:
    service = serve(prefetch=300)
    await service.publish(b"first")
    bodies = [b"%d" % number for number in range(150)]

    answers = all_begun(service.publisher, *map(copy, bodies))

    assert await asyncio.gather(*answers) == [None] * 150
    assert [(await service.next()).body for _ in range(151)] == [b"first", *bodies]


async def test_what_is_returned_is_told_among_what_is_confirmed(serve: Start) -> None:
    service = serve(prefetch=500)
    there = service.topology.work_queue("default")
    await service.publisher.publish(Outgoing(Kind.REPLY, there, Properties(), b"{}"))
    replies = [Outgoing(Kind.REPLY, name, Properties(), b"{}") for name in (there, "nowhere") * 50]

    answers = await asyncio.gather(*all_begun(service.publisher, *replies))

    assert [str(answer) for answer in answers[1::2]] == [
        "returned by the broker: no queue for key 'nowhere'"
    ] * 50
    assert answers[::2] == [None] * 50


async def test_an_event_that_nobody_waits_for_is_confirmed(serve: Start) -> None:
    service = serve()
    event = Outgoing(Kind.EVENT, "nobody.listens", Properties(), b"{}", exchange="")
    await service.publisher.publish(event)

    (answer,) = all_begun(service.publisher, event)

    assert await answer is None


@pytest.mark.parametrize(
    "outgoing",
    [
        copy(b"x" * 2_000_000),
        copy(properties=Properties(type="t", headers={"huge": "x" * 200_000})),
        copy(properties=Properties(type="t", headers={"bad": object()})),
        Outgoing(Kind.REPLY, "\ud800", Properties(), b"{}"),
    ],
    ids=["large body", "large headers", "bad header", "bad name"],
)
async def test_what_is_no_small_plain_message_is_not_begun(serve: Start, outgoing: Outgoing) -> None:
    service = serve()
    await service.publish()
    await service.publisher.publish(
        Outgoing(Kind.REPLY, service.topology.work_queue("default"), Properties(), b"{}")
    )

    assert begun(service.publisher, outgoing) is None

    (answer,) = all_begun(service.publisher, copy())
    assert await answer is None


async def test_nothing_is_begun_before_there_is_a_connection_and_a_channel(
    serve: Start, declared: Topology
) -> None:
    service = serve()
    await service.publish()

    assert begun(Publisher(Link("publish", lambda: "", print), declared, emit=print), copy()) is None
    assert begun(service.publisher, Outgoing(Kind.REPLY, "another.channel", TYPED, b"{}")) is None


async def test_no_more_are_begun_than_may_be_unconfirmed(serve: Start) -> None:
    service = serve(prefetch=500)
    await service.publish()

    answers = all_begun(service.publisher, *[copy()] * UNCONFIRMED)
    assert begun(service.publisher, copy()) is None

    await asyncio.gather(*answers)
    assert begun(service.publisher, copy()) is not None


async def test_the_loss_of_the_connection_is_told_to_all(serve: Start, broker: Broker) -> None:
    async with through_a_proxy(broker) as (proxy, url):
        service = serve(url=f"{url}?heartbeat=1")
        await service.publish()
        proxy.stall()

        answers = all_begun(service.publisher, *[copy()] * 100)

        async with asyncio.timeout(20):
            failed = [answer for answer in await asyncio.gather(*answers) if answer is not None]
    assert len(failed) == 100


async def test_an_exchange_that_is_missing_is_told_and_declared_again(serve: Start, broker: Broker) -> None:
    service = serve()
    await service.is_consuming()  # or what consumes declares it again
    await service.publish()
    async with connected(broker.url, "test delete") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        await channel.exchange_delete(service.topology.tasks_exchange)

    (answer,) = all_begun(service.publisher, copy())

    assert service.topology.tasks_exchange in str(await answer)
    await service.events.until(lambda e: e == TopologyRepaired(f"exchange {service.topology.tasks_exchange}"))


async def test_each_is_told_at_its_own_deadline(
    broker: Broker, declared: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with through_a_proxy(broker) as (proxy, url), asyncio.TaskGroup() as group:
        publisher = Publisher(Link("publish", lambda: url, lambda _: None), declared, emit=lambda _: None)
        group.create_task(publisher.run())
        await publisher.publish(copy())
        monkeypatch.setattr(publisher, "_deadline", 4)  # when the connection is there
        proxy.stall()

        early = all_begun(publisher, *[copy()] * 3)
        await asyncio.wait(early, timeout=0.1)
        begun_at = asyncio.get_running_loop().time()
        (late,) = all_begun(publisher, copy())
        failures = [*await asyncio.gather(*early), await late]
        told_at = asyncio.get_running_loop().time()
        proxy.resume()
        await publisher.close()

    assert told_at - begun_at >= 4  # and not with those that had waited before
    assert [str(failure).rpartition(": ")[2] for failure in failures] == ["no answer in time"] * 4

"""Connections that come and go, or carry a byte at a time: slow, and never wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from broker_worker.amqp.connection import connected
from broker_worker.amqp.looking import Looks
from broker_worker.events import ConnectionChanged, ConsumerChanged
from tests.integration.amqp.conftest import SECONDS, Service
from tests.integration.amqp.test_connecting import at_port
from tests.support.proxy import Unwatched, Write, proxy_to
from tests.support.services import Broker

pytestmark = pytest.mark.timeout(180)

Start = Callable[..., Service]
FLAPS = 10


class Slicer(Unwatched):
    """Carries one byte at a time, in both directions."""

    async def from_client(self, data: bytes, write: Write) -> None:
        await self._slice(data, write)

    async def from_server(self, data: bytes, write: Write) -> None:
        await self._slice(data, write)

    async def _slice(self, data: bytes, write: Write) -> None:
        for at in range(len(data)):
            await write(data[at : at + 1])
            await asyncio.sleep(0)  # so that the other side reads it alone


async def consumers(service: Service) -> int:
    async with connected(service.url, "test look") as connection:
        looks = Looks(connection)
        look = await looks.look(service.topology.work_queue("default"))
        await looks.close()
    assert look is not None
    return look.consumers


async def test_a_connection_that_flaps_leaves_one_consumer_and_no_task_behind(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_worker.amqp.consumer.LOOK_INTERVAL", 3600.0)  # a look has a task of its own
    monkeypatch.setattr("broker_worker.amqp.patience.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("broker_worker.amqp.patience.LONGEST_PAUSE", 0.1)
    service = serve()
    await service.is_consuming()
    await service.publish(b"held")
    await service.next()
    tasks = len(asyncio.all_tasks())

    for flap in range(1, FLAPS + 1):
        held = service.consumption._link._connection
        assert held is not None
        held.abort()
        await service.is_consuming(times=flap + 1)
    await service.next()  # it came again each time, and the last one is the one to be acked

    async with asyncio.timeout(SECONDS):
        while len(asyncio.all_tasks()) > tasks or await consumers(service) > 1:
            await asyncio.sleep(0.05)
    assert await consumers(service) == 1


async def test_a_byte_at_a_time_is_slow_and_right(serve: Start, broker: Broker) -> None:
    parts = urlsplit(broker.url)
    async with proxy_to(parts.hostname or "", parts.port or 0, Slicer) as proxy:
        service = serve(url=at_port(broker.url, proxy.port), may_declare=False)
        await service.is_consuming(within=60)
        for number in range(5):
            await service.publish(b"%d" % number * 3000)

        bodies = []
        for _ in range(5):
            delivery = await service.next(within=60)
            bodies.append(delivery.body)
            await delivery.ack()

        assert bodies == [b"%d" % number * 3000 for number in range(5)]
        ups = (ConnectionChanged, ConsumerChanged)
        assert not any(isinstance(event, ups) and not event.is_up for event in service.events.seen)


async def test_a_long_delay_keeps_no_short_one_waiting(serve: Start) -> None:
    service = serve()
    await asyncio.gather(service.publish(b"long", delay=2), service.publish(b"short", delay=1))

    assert [(await service.next()).body for _ in range(2)] == [b"short", b"long"]

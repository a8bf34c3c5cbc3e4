from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from broker_worker.amqp.connection import Connection, Link, connected
from broker_worker.amqp.topology import Topology
from broker_worker.errors import BrokerUnavailableError, ConfigurationError, PublishError
from broker_worker.events import ConnectionChanged
from tests.integration.amqp.conftest import SECONDS, Events, Service
from tests.support.management import Control
from tests.support.proxy import proxy_to
from tests.support.services import Broker

Start = Callable[..., Service]


def at_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()


async def forever(_: Connection) -> None:
    await asyncio.Event().wait()


async def test_the_next_host_is_tried_when_one_does_not_answer(broker: Broker) -> None:
    url = broker.url.replace("@", "@127.0.0.1:1,", 1)

    async with connected(url, "test") as connection:
        assert connection.is_open


async def test_a_broker_that_cannot_be_reached_is_named_without_the_password() -> None:
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1") as caught:
        async with connected("amqp://user:s3cret@127.0.0.1:1/", "test"):
            pass

    assert "s3cret" not in str(caught.value)


async def test_a_wrong_password_is_said_and_tried_again(broker: Broker) -> None:
    events = Events()
    parts = urlsplit(broker.url)
    url = f"amqp://{parts.username}:wr0ng@{parts.hostname}:{parts.port}{parts.path}"
    link = Link("consume", lambda: url, events.emit)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run(forever))

        await events.until(lambda e: isinstance(e, ConnectionChanged) and "access refused" in e.detail)
        url = broker.url
        await events.until(lambda e: isinstance(e, ConnectionChanged) and e.is_up)

        await link.close()
    assert not any("wr0ng" in str(event) for event in events.seen)


async def test_a_lasting_fault_is_reported_once(broker: Broker) -> None:
    events, tries = Events(), asyncio.Queue[None]()

    def url() -> str:
        tries.put_nowait(None)
        return "amqp://127.0.0.1:1/"

    link = Link("consume", url, events.emit)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run(forever))
        for _ in range(3):
            await tries.get()

        await link.close()

    assert [event.is_up for event in events.seen if isinstance(event, ConnectionChanged)] == [False]


async def test_an_url_that_is_none_ends_the_link() -> None:
    link = Link("consume", lambda: "nonsense", lambda _: None)

    with pytest.raises(ConfigurationError):
        await link.run(forever)


async def test_a_cancelled_link_ends_at_once(broker: Broker) -> None:
    events = Events()
    link = Link("consume", lambda: broker.url, events.emit)
    running = asyncio.create_task(link.run(forever))
    await events.until(lambda e: isinstance(e, ConnectionChanged) and e.is_up)

    running.cancel()
    await asyncio.wait({running}, timeout=SECONDS)

    assert running.cancelled()
    assert not link.is_up


async def test_a_connection_has_its_name_in_the_broker(broker: Broker, control: Control) -> None:
    async with connected(broker.url, "broker_worker consume"):
        assert await control.client_names() == ["broker_worker consume"]


async def test_closing_takes_no_longer_than_five_seconds_on_a_stalled_socket(
    broker: Broker, serve: Start
) -> None:
    parts = urlsplit(broker.url)
    async with proxy_to(parts.hostname or "", parts.port or 0) as proxy:
        service = serve(url=at_port(broker.url, proxy.port))
        await service.is_consuming()
        await service.publish()
        delivery = await service.next()
        proxy.stall()

        async def publish() -> None:
            with pytest.raises(PublishError):
                await service.publish(b"x" * 1_000_000)

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(publish())
            await asyncio.sleep(0)
            await delivery.ack()
            # and what a busy machine takes; the socket alone would be given up after half a minute
            async with asyncio.timeout(15):
                await asyncio.gather(service.consumption.close(), service.publisher.close())


async def test_a_connection_without_a_sign_of_life_is_replaced(broker: Broker, serve: Start) -> None:
    parts = urlsplit(broker.url)
    async with proxy_to(parts.hostname or "", parts.port or 0) as proxy:
        service = serve(url=f"{at_port(broker.url, proxy.port)}?heartbeat=1")
        await service.is_consuming()
        proxy.stall()

        await service.events.until(lambda e: isinstance(e, ConnectionChanged) and not e.is_up)
        proxy.resume()

        await service.is_consuming(times=2)


async def test_a_handshake_without_an_answer_ends_at_its_deadline(
    broker: Broker, declared: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_worker.amqp.connection.CONNECT_DEADLINE", 0.3)
    parts = urlsplit(broker.url)
    async with proxy_to(parts.hostname or "", parts.port or 0) as proxy:
        proxy.stall()

        with pytest.raises(BrokerUnavailableError):
            async with asyncio.timeout(SECONDS), connected(at_port(broker.url, proxy.port), "test"):
                pass

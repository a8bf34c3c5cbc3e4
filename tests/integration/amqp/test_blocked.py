"""A broker that reads no publishes for a while, because it is short of memory or disk."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import pytest
from pamqp import commands
from pamqp.frame import marshal

from broker_worker.amqp.connection import Link
from broker_worker.amqp.publisher import Publisher
from broker_worker.amqp.topology import Topology
from broker_worker.errors import UnsentError
from broker_worker.events import ConnectionChanged, PublishingBlocked
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from tests.integration.amqp.conftest import Events, Service
from tests.integration.amqp.test_connecting import at_port
from tests.support.proxy import Unwatched, Write, proxy_to
from tests.support.services import Broker

Start = Callable[..., Service]
PUBLISH = struct.pack(">I", commands.Basic.Publish.index)
COPY = Outgoing(Kind.COPY, "default", Properties(type="t"), b"{}")


class Alarm(Unwatched):
    """Says to each client what the broker says when it runs out of memory."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.publishes = 0

    async def from_client(self, data: bytes, write: Write) -> None:
        self.publishes += data.count(PUBLISH)
        await write(data)

    async def from_server(self, data: bytes, write: Write) -> None:
        if write not in self.writes:
            self.writes.append(write)
        await write(data)

    async def block(self) -> None:
        await self._tell(commands.Connection.Blocked("low on memory"))

    async def unblock(self) -> None:
        await self._tell(commands.Connection.Unblocked())

    async def _tell(self, frame: commands.Connection.Blocked | commands.Connection.Unblocked) -> None:
        for write in self.writes:
            await write(marshal(frame, 0))


@pytest.fixture
async def alarm() -> Alarm:
    return Alarm()


@pytest.fixture
async def alarming_url(broker: Broker, alarm: Alarm) -> AsyncIterator[str]:
    parts = urlsplit(broker.url)
    async with proxy_to(parts.hostname or "", parts.port or 0, lambda: alarm) as proxy:
        yield at_port(broker.url, proxy.port)


async def test_what_is_published_meanwhile_waits_and_is_sent_once(
    serve: Start, alarm: Alarm, alarming_url: str
) -> None:
    service = serve(url=alarming_url, prefetch=30)
    await service.publish(b"before")
    await alarm.block()
    await service.events.until(lambda e: e == PublishingBlocked(is_blocked=True, reason="low on memory"))
    sent = alarm.publishes

    async with asyncio.TaskGroup() as group:
        publishes = [group.create_task(service.publish(b"meanwhile")) for _ in range(20)]
        await asyncio.wait(publishes, timeout=0.3)
        was_begun = service.publisher.begin(COPY, lambda _: None)
        was_sent = alarm.publishes - sent
        await alarm.unblock()

    assert (was_begun, was_sent) == (False, 0)
    assert [(await service.next()).body for _ in range(21)] == [b"before", *[b"meanwhile"] * 20]
    assert PublishingBlocked(is_blocked=False) in service.events.seen
    assert not any(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_consuming_goes_on_meanwhile(serve: Start, alarm: Alarm, alarming_url: str) -> None:
    service, other = serve(url=alarming_url), serve(subscriptions=[])
    await service.is_consuming()
    await alarm.block()

    await other.publish(b"meanwhile")

    delivery = await service.next()
    await delivery.ack()
    assert delivery.body == b"meanwhile"


async def test_who_waits_too_long_is_told_why(
    declared: Topology, alarm: Alarm, alarming_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    blocked = Publisher(Link("publish", lambda: alarming_url, events.emit), declared, emit=events.emit)
    async with asyncio.TaskGroup() as group:
        group.create_task(blocked.run())
        await blocked.publish(COPY)
        await alarm.block()
        await events.until(lambda e: isinstance(e, PublishingBlocked))
        monkeypatch.setattr(blocked, "_deadline", 0.2)

        with pytest.raises(UnsentError, match="the broker takes no publishes: low on memory"):
            await blocked.publish(COPY)

        await blocked.close()
    assert PublishingBlocked(is_blocked=False) in events.seen

"""A destination that takes messages and confirms none, as a quorum queue without a leader does."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from pamqp import commands

from broker_worker.amqp.connection import Link
from broker_worker.amqp.publisher import PROBES, Publisher
from broker_worker.amqp.topology import Topology
from broker_worker.errors import PublishError
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from tests.integration.amqp.test_connecting import at_port
from tests.integration.amqp.test_supervising import frames_of
from tests.support.proxy import Unwatched, Write, proxy_to
from tests.support.services import Broker

pytestmark = pytest.mark.timeout(180)

PUBLISH, ACK = (struct.pack(">I", method.index) for method in (commands.Basic.Publish, commands.Basic.Ack))
MANY = 40
PROMPT = Outgoing(Kind.COPY, "default", Properties(type="t"), b"prompt")
DELAYED = Outgoing(Kind.COPY, "default", Properties(type="t"), b"delayed", timedelta(seconds=1))


class Leaderless(Unwatched):
    """Keeps back the confirms of what goes to one exchange."""

    def __init__(self, exchange: str) -> None:
        self._exchange = exchange.encode()
        self._channel = 0
        self.is_mute = True
        self.publishes = 0

    async def from_client(self, data: bytes, write: Write) -> None:
        for frame in frames_of(data):
            if frame[7:11] == PUBLISH and self._exchange in frame:
                self._channel = struct.unpack_from(">H", frame, 1)[0]
                self.publishes += 1
        await write(data)

    async def from_server(self, data: bytes, write: Write) -> None:
        for frame in frames_of(data):
            is_confirm = frame[7:11] == ACK and struct.unpack_from(">H", frame, 1)[0] == self._channel
            if not (self.is_mute and is_confirm):
                await write(frame)


@pytest.fixture
def leaderless(declared: Topology) -> Leaderless:
    return Leaderless(declared.delay(timedelta(seconds=1)))


@pytest.fixture
async def impatient(broker: Broker, declared: Topology, leaderless: Leaderless) -> AsyncIterator[Publisher]:
    parts = urlsplit(broker.url)
    async with (
        proxy_to(parts.hostname or "", parts.port or 0, lambda: leaderless) as proxy,
        asyncio.TaskGroup() as group,
    ):
        url = at_port(broker.url, proxy.port)
        link = Link("publish", lambda: url, lambda _: None)
        publisher = Publisher(link, declared, emit=lambda _: None)
        group.create_task(publisher.run())
        await publisher.publish(PROMPT)
        publisher._deadline = 6.0  # when the connection is there
        yield publisher
        await publisher.close()


async def errors(publisher: Publisher, outgoing: Outgoing) -> list[str]:
    """Publish many at once; what the failures say."""
    results = await asyncio.gather(
        *(publisher.publish(outgoing) for _ in range(MANY)), return_exceptions=True
    )
    assert all(each is None or isinstance(each, PublishError) for each in results)
    return [str(each) for each in results if each is not None]


async def test_few_at_once_are_tried_there_and_the_others_go_elsewhere_as_ever(
    impatient: Publisher, leaderless: Leaderless
) -> None:
    first = await errors(impatient, DELAYED)
    tried = leaderless.publishes

    second, elsewhere = await asyncio.gather(errors(impatient, DELAYED), errors(impatient, PROMPT))

    assert (len(first), len(second), elsewhere) == (MANY, MANY, [])
    assert leaderless.publishes - tried == PROBES
    assert sum("nothing is confirmed there at the moment" in each for each in second) == MANY - PROBES
    assert not impatient.begin(DELAYED, lambda _: None)


async def test_one_confirm_opens_it_for_all(impatient: Publisher, leaderless: Leaderless) -> None:
    await errors(impatient, DELAYED)
    leaderless.is_mute = False

    await impatient.publish(DELAYED)

    assert await errors(impatient, DELAYED) == []


async def test_what_was_begun_and_not_confirmed_closes_it_too(
    impatient: Publisher, leaderless: Leaderless
) -> None:
    leaderless.is_mute = False
    await impatient.publish(DELAYED)
    leaderless.is_mute = True
    answer = asyncio.get_running_loop().create_future()
    assert impatient.begin(DELAYED, answer.set_result)

    assert isinstance(await answer, PublishError)

    assert not impatient.begin(DELAYED, answer.set_result)

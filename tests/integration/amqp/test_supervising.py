"""Consumers that are lost without the loss of their connection: noticed, and repaired by themselves."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pamqp import commands, constants
from pamqp.frame import marshal

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import connected
from broker_worker.amqp.topology import Topology
from broker_worker.events import ConnectionChanged, ConsumerChanged, Event, TopologyRepaired
from tests.integration.amqp.conftest import SECONDS, Service
from tests.integration.amqp.test_connecting import at_port
from tests.integration.amqp.test_consuming import delete_queue
from tests.support.management import Control
from tests.support.proxy import Unwatched, Write, proxy_to
from tests.support.services import Broker

pytestmark = pytest.mark.timeout(180)

Start = Callable[..., Service]
CONSUME, OPEN = (
    struct.pack(">I", method.index) for method in (commands.Basic.Consume, commands.Channel.Open)
)
QUICK = 0.2  # seconds between two looks


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_worker.amqp.consumer.LOOK_INTERVAL", QUICK)


class Wire(Unwatched):
    """Says to the broker what the client does not know of, or keeps requests from it."""

    def __init__(self) -> None:
        self.to_broker: Write | None = None  # on the connection that consumes
        self.channel = 0
        self.tag = ""
        self.is_forgotten = asyncio.Event()
        self.kept_back: Callable[[bytes], bool] = lambda _: False
        self.asked = 0

    async def from_client(self, data: bytes, write: Write) -> None:
        for frame in frames_of(data):
            method = frame[7:11]
            if method == CONSUME:
                self.to_broker = write
                self.channel = struct.unpack_from(">H", frame, 1)[0]
                self.tag = consumer_tag(frame)
            if self.kept_back(frame):
                self.asked += method in {CONSUME, OPEN}
                continue
            await write(frame)

    async def from_server(self, data: bytes, write: Write) -> None:
        cancelled = marshal(commands.Basic.CancelOk(self.tag), self.channel)
        if cancelled in data:
            self.is_forgotten.set()
            data = data.replace(cancelled, b"")
        await write(data)

    async def forget_consumer(self) -> None:
        """Cancel the client's consumer behind its back: the answer is kept from it."""
        assert self.to_broker is not None
        await self.to_broker(marshal(commands.Basic.Cancel(self.tag), self.channel))
        await self.is_forgotten.wait()  # or what is published next may still go to it


def frames_of(data: bytes) -> list[bytes]:
    """Cut what a client writes at once; it writes whole frames."""
    if data.startswith(b"AMQP"):
        return [data]
    frames, at = [], 0
    while at < len(data):
        after = at + 8 + struct.unpack_from(">I", data, at + 3)[0]
        frames.append(data[at:after])
        at = after
    return frames


def consumer_tag(frame: bytes) -> str:
    request = commands.Basic.Consume()
    request.unmarshal(frame[11:-1])
    return request.consumer_tag


@asynccontextmanager
async def through(broker: Broker, wire: Wire) -> AsyncIterator[str]:
    parts = urlsplit(broker.url)
    async with proxy_to(parts.hostname or "", parts.port or 0, lambda: wire) as proxy:
        yield at_port(broker.url, proxy.port)


def is_lost(reason: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, ConsumerChanged) and not event.is_up and reason in event.detail


def connections_lost(service: Service) -> int:
    return sum(isinstance(e, ConnectionChanged) and not e.is_up for e in service.events.seen)


async def test_a_consumer_that_the_broker_forgot_is_replaced(serve: Start, broker: Broker) -> None:
    wire = Wire()
    async with through(broker, wire) as url:
        service = serve(url=url)
        await service.is_consuming()

        await wire.forget_consumer()

        await service.events.until(is_lost("the broker does not know the consumer any more"))
        await service.is_consuming(times=2)
        await service.publish(b"after")
        assert (await service.next()).body == b"after"
    assert connections_lost(service) == 0


async def test_a_forgotten_consumer_is_found_beside_others_that_are_busy(
    serve: Start, broker: Broker
) -> None:
    wire = Wire()
    async with through(broker, wire) as url:
        service, other = serve(url=url), serve(prefetch=1)
        await service.is_consuming()
        await other.is_consuming()
        await wire.forget_consumer()
        for _ in range(3):
            await other.publish(b"more than the other has room for")

        await service.events.until(is_lost("the broker has messages and delivers none"))

        assert (await service.next()).body == b"more than the other has room for"


async def test_what_runs_goes_on_when_its_consumer_is_replaced_and_comes_again_to_be_acked(
    serve: Start, broker: Broker
) -> None:
    wire = Wire()
    async with through(broker, wire) as url:
        service = serve(url=url)
        await service.publish(b"runs")
        await service.next()

        await wire.forget_consumer()
        await service.publish(b"waits")  # a consumer that owes an ack counts as one until it is gone

        came = {(each.body, each.redelivered) for each in [await service.next() for _ in range(2)]}
    assert came == {(b"runs", True), (b"waits", False)}


async def test_a_consumer_that_is_served_is_left_alone(serve: Start) -> None:
    service = serve(prefetch=1)
    for _ in range(3):
        await service.publish()
    held = await service.next()

    async with asyncio.timeout(SECONDS):
        while (await service.consumption.ready_depth("default")) != 2:
            await asyncio.sleep(QUICK)
    await asyncio.sleep(5 * QUICK)  # two looks or more

    assert held.is_alive
    assert service.consumption.all_consuming


async def test_a_queue_that_somebody_declared_anew_has_its_bindings_again(
    serve: Start, broker: Broker, declared: Topology
) -> None:
    service = serve()
    await service.is_consuming()
    name = declared.work_queue("default")
    spec = next(each for each in declared.plan() if getattr(each, "name", None) == name)

    async with connected(broker.url, "test operator") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        await channel.queue_delete(name)
        await channel.queue_declare(name, durable=True, arguments=dict(spec.arguments))  # type: ignore[union-attr]

    async with asyncio.timeout(SECONDS):
        while service.deliveries.empty():  # until it is bound again, what is published is unroutable
            await service.publish(b"after")
            await asyncio.sleep(QUICK)
    assert (await service.next()).body == b"after"


async def test_a_queue_that_somebody_declared_otherwise_is_not_consumed_until_it_is_ours_again(
    serve: Start, broker: Broker, declared: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_worker.amqp.patience.FIRST_PAUSE", 3.0)  # in which somebody is first
    service = serve()
    await service.is_consuming()
    name = declared.work_queue("default")
    async with connected(broker.url, "test operator") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        await channel.queue_delete(name)
        await channel.queue_declare(name, durable=True)

    await service.events.until(is_lost(f"queue {name} exists and has x-"))
    codes = [e.code for e in service.events.seen if isinstance(e, ConsumerChanged) and not e.is_up]
    assert 406 in codes
    assert not service.consumption.all_consuming
    consumed = sum(isinstance(e, ConsumerChanged) and e.is_up for e in service.events.seen)
    await delete_queue(broker.url, name)

    await service.is_consuming(times=consumed + 1)
    assert service.consumption.all_consuming
    assert TopologyRepaired(f"queue {name}") in service.events.seen


async def test_a_right_that_is_taken_away_is_said_with_its_code_and_may_come_back(
    serve: Start, broker: Broker, control: Control
) -> None:
    url = await control.add_user(broker.url, write=".*", read=".*")
    service = serve(url=url, may_declare=False)
    await service.is_consuming()

    await control.set_rights(url, write=".*", read="^$")
    await control.close_connections(at_least=2)

    await service.events.until(lambda e: isinstance(e, ConsumerChanged) and not e.is_up and e.code == 403)
    assert not service.consumption.all_consuming
    await control.set_rights(url, write=".*", read=".*")
    await service.is_consuming(times=2)


async def test_a_connection_on_which_the_broker_opens_no_channel_is_replaced_at_the_third_try(
    serve: Start, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_worker.amqp.consumer.LOOK_DEADLINE", 0.2)
    wire = Wire()
    async with through(broker, wire) as url:
        service = serve(url=url)
        await service.is_consuming()

        wire.kept_back = lambda frame: frame[0] != constants.FRAME_HEARTBEAT

        await service.events.until(
            lambda e: isinstance(e, ConnectionChanged) and e.link == "consume" and not e.is_up
        )
        tries = wire.asked
        wire.kept_back = lambda _: False
        await service.is_consuming(times=2)
    assert tries >= 3


async def test_a_queue_without_an_answer_costs_the_others_nothing(
    serve: Start, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_worker.amqp.consumer.START_DEADLINE", 3.0)  # enough to open a channel
    wire = Wire()
    async with through(broker, wire) as url:
        wire.kept_back = lambda frame: frame[7:11] == CONSUME
        service = serve(url=url)

        await service.events.until(is_lost("has the queue lost its leader?"))
        async with asyncio.timeout(2 * SECONDS):
            while wire.asked < 4:
                await asyncio.sleep(QUICK)
        wire.kept_back = lambda _: False

        await service.is_consuming()
    assert connections_lost(service) == 0

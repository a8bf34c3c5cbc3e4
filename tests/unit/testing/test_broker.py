from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from broker_worker.errors import PublishError
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.ports import Delivery, Publisher
from broker_worker.testing.broker import MemoryBroker, MemoryDelivery
from broker_worker.testing.clock import in_virtual_time

ANY = Properties()


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(["email"])


def bodies(deliveries: list[MemoryDelivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


async def test_a_consumer_gets_no_more_than_its_prefetch_until_it_acks(broker: MemoryBroker) -> None:
    taken: list[MemoryDelivery] = []
    for body in (b"1", b"2", b"3"):
        broker.send("email", ANY, body)

    broker.consume("email", taken.append, prefetch=2)
    before = bodies(taken)
    await taken[0].ack()
    await taken[0].ack()

    assert before == [b"1", b"2"]
    assert bodies(taken) == [b"1", b"2", b"3"]
    assert broker.ready("email") == 0


async def test_what_a_lost_channel_left_is_delivered_again_first_and_in_order(broker: MemoryBroker) -> None:
    first: list[MemoryDelivery] = []
    second: list[MemoryDelivery] = []
    for body in (b"1", b"2", b"3", b"4"):
        broker.send("email", ANY, body)
    channel = broker.consume("email", first.append, prefetch=3)
    await first[0].ack()

    channel.close()
    broker.consume("email", second.append, prefetch=9)

    assert [delivery.is_alive for delivery in first] == [False] * 4
    assert bodies(second) == [b"2", b"3", b"4"]
    assert all(delivery.redelivered for delivery in second)


async def test_an_ack_for_a_lost_channel_is_dropped(broker: MemoryBroker) -> None:
    taken: list[MemoryDelivery] = []
    broker.send("email", ANY, b"1")
    broker.consume("email", taken.append, prefetch=1).close()

    delivery: Delivery = taken[0]
    await delivery.ack()

    assert broker.ready("email") == 1


async def test_consumers_take_turns(broker: MemoryBroker) -> None:
    first: list[MemoryDelivery] = []
    second: list[MemoryDelivery] = []
    broker.consume("email", first.append, prefetch=9)
    broker.consume("email", second.append, prefetch=9)

    for _ in range(4):
        broker.send("email", ANY, b"")

    assert (len(first), len(second)) == (2, 2)


async def test_who_stopped_consuming_can_still_ack(broker: MemoryBroker) -> None:
    taken: list[MemoryDelivery] = []
    broker.send("email", ANY, b"1")
    channel = broker.consume("email", taken.append, prefetch=9)

    channel.stop_consuming()
    broker.send("email", ANY, b"2")
    await taken[0].ack()

    assert (bodies(taken), channel.unsettled, broker.ready("email")) == ([b"1"], [], 1)


@in_virtual_time
async def test_a_delayed_copy_comes_when_its_time_is_over() -> None:
    broker = MemoryBroker(["email"])
    await broker.publish(Outgoing(Kind.COPY, "email", ANY, b"1", delay=timedelta(hours=1)))

    await asyncio.sleep(3599)
    early = (broker.ready("email"), broker.delayed)
    await asyncio.sleep(2)

    assert early == (0, 1)
    assert (broker.ready("email"), broker.delayed) == (1, 0)


async def test_a_copy_for_an_unknown_queue_is_returned(broker: MemoryBroker) -> None:
    with pytest.raises(PublishError, match="sms"):
        await broker.publish(Outgoing(Kind.COPY, "sms", ANY, b""))
    with pytest.raises(PublishError, match="sms"):
        broker.send("sms", ANY, b"")


async def test_letters_and_replies_are_kept_to_look_at(broker: MemoryBroker) -> None:
    letter, reply = Outgoing(Kind.DEAD_LETTER, "email.lost.x", ANY, b""), Outgoing(Kind.REPLY, "r", ANY, b"")

    publisher: Publisher = broker
    await publisher.publish(letter)
    await publisher.publish(reply)

    assert (broker.dead_letters, broker.replies) == ([letter], [reply])

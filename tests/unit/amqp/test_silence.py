"""When a connection that stands, and from which nothing comes, is given up: in virtual time."""

from __future__ import annotations

import asyncio

from broker_worker.amqp.connection import HEARTBEAT, until_silent
from broker_worker.amqp.delivery_stream import DeliveryStream
from broker_worker.testing.clock import VirtualLoop, in_virtual_time

BOUND = 33  # seconds


class Listening:
    """A stream that brings what the test says."""

    def __init__(self, heartbeat: int = HEARTBEAT) -> None:
        self.reader = asyncio.StreamReader()
        stream = DeliveryStream(self.reader)
        self.reading = asyncio.ensure_future(stream.readexactly(1_000_000))
        self.silent = asyncio.ensure_future(until_silent(stream, heartbeat))

    def hear(self, data: bytes = b"?") -> None:
        self.reader.feed_data(data)


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_a_broker_that_falls_silent_is_given_up_within_three_heartbeats_and_a_little() -> None:
    here = Listening()
    await asyncio.sleep(7)
    here.hear()
    last = now()

    await here.silent

    assert 2 * HEARTBEAT < now() - last <= BOUND


@in_virtual_time
async def test_one_byte_now_and_then_is_a_sign_of_life() -> None:
    here = Listening()
    for _ in range(20):
        await asyncio.sleep(3 * HEARTBEAT - 2)
        here.hear()

    assert not here.silent.done()


@in_virtual_time
async def test_a_loop_that_stood_still_has_not_listened_and_gives_nobody_up() -> None:
    here = Listening()
    await asyncio.sleep(1)

    # as after a handler that blocked for a minute: all that was due happens at once, before anything is read
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.pass_time(60)
    await asyncio.sleep(0)
    here.hear()
    await asyncio.sleep(2 * HEARTBEAT)

    assert not here.silent.done()


@in_virtual_time
async def test_without_heartbeats_a_silence_means_nothing() -> None:
    here = Listening(heartbeat=0)

    await asyncio.sleep(10_000)

    assert not here.silent.done()

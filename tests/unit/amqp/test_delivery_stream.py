from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, header, heartbeat
from pamqp.frame import marshal

from broker_worker.amqp.delivery_stream import SIGN_OF_LIFE, Delivered, DeliveryStream
from broker_worker.message import Message, TaskId, UntakenBody

OURS, OTHER = 1, 2


def delivery(content: bytes, *, channel: int = OURS, tag: int = 1, part: int = 10) -> bytes:
    """Return the frames of one delivery whose body comes in parts of `part` bytes."""
    deliver = commands.Basic.Deliver(
        "a consumer", tag, redelivered=True, exchange="an exchange", routing_key="k"
    )
    properties = commands.Basic.Properties(message_id="7")
    frames = [marshal(deliver, channel), marshal(header.ContentHeader(0, len(content), properties), channel)]
    pieces = [content[at : at + part] for at in range(0, len(content), part)]
    return b"".join([*frames, *(marshal(body.ContentBody(piece), channel) for piece in pieces)])


CLOSE = marshal(commands.Channel.Close(404, "gone", 60, 20), OURS)
BEAT = marshal(heartbeat.Heartbeat(), 0)


async def read(
    data: list[bytes], *, subscribed: bool = True, largest: int | None = None
) -> tuple[list[Delivered], bytes]:
    """Feed pieces to a stream; what the subscriber got, and what is left for the library."""
    reader = asyncio.StreamReader()
    stream = DeliveryStream(reader)
    taken: list[Delivered] = []
    if subscribed:
        stream.subscribe(OURS, taken.append, largest=largest)
    left = b""

    async def read_on() -> None:
        nonlocal left
        while True:
            left += await stream.readexactly(1)

    reading = asyncio.ensure_future(read_on())
    for piece in data:
        reader.feed_data(piece)
        await asyncio.sleep(0)
    reader.feed_eof()
    with pytest.raises(asyncio.IncompleteReadError) as error:
        await reading
    return taken, left + error.value.partial


async def test_of_a_body_over_the_limit_only_size_and_digest_are_kept() -> None:
    small, large, next_one = b"x" * 25, b"y" * 26, b"z"
    data = b"".join([delivery(small), delivery(large, tag=2), delivery(next_one, tag=3)])

    taken, _ = await read([data[at : at + 7] for at in range(0, len(data), 7)], largest=25)

    assert [one.body for one in taken] == [small, b"", next_one]
    untaken = taken[1].body
    assert isinstance(untaken, UntakenBody)
    assert untaken.size == 26
    assert untaken.digest == Message(TaskId("q", "n", "i"), large).digest()


async def test_a_body_as_large_as_may_be_is_taken_and_an_empty_one_too() -> None:
    taken, _ = await read([delivery(b"x" * 25), delivery(b"", tag=2)], largest=25)

    assert [type(one.body) for one in taken] == [bytes, bytes]


async def test_a_message_that_is_not_taken_twice_has_the_same_letter_and_another_has_not() -> None:
    taken, _ = await read(
        [delivery(b"x" * 9), delivery(b"x" * 9, tag=2), delivery(b"y" * 9, tag=3)], largest=5
    )

    first, again, other = [one.body for one in taken]
    assert isinstance(first, UntakenBody)
    assert isinstance(again, UntakenBody)
    assert isinstance(other, UntakenBody)
    assert first.letter_seed == again.letter_seed != other.letter_seed


async def test_a_delivery_is_handed_over_and_the_library_gets_a_sign_of_life() -> None:
    taken, left = await read([delivery(b"x" * 25)])

    [one] = taken
    assert (one.tag, one.redelivered, one.exchange, one.routing_key) == (1, True, "an exchange", "k")
    assert one.body == b"x" * 25
    assert left == SIGN_OF_LIFE


async def test_an_empty_body_needs_no_frame_of_its_own() -> None:
    taken, _ = await read([delivery(b"")])

    assert [one.body for one in taken] == [b""]


async def test_what_is_no_delivery_of_ours_goes_to_the_library_as_it_came() -> None:
    of_other = delivery(b"other", channel=OTHER)
    taken, left = await read([BEAT + of_other + CLOSE])

    assert (taken, left) == ([], BEAT + of_other + CLOSE)


async def test_deliveries_of_two_channels_may_interleave_frame_by_frame() -> None:
    ours, other = delivery(b"abc"), delivery(b"xyz", channel=OTHER)
    size = 8 + struct.unpack_from(">I", ours, 3)[0]
    taken, left = await read([ours[:size] + other + ours[size:]])

    assert [one.body for one in taken] == [b"abc"]
    assert left == other + SIGN_OF_LIFE


async def test_without_a_subscriber_the_library_gets_the_deliveries() -> None:
    taken, left = await read([delivery(b"abc")], subscribed=False)

    assert (taken, left) == ([], delivery(b"abc"))


@pytest.mark.parametrize("noise", [b"AMQP\0\0\x09\x01", b"HTTP/1.1 400 Bad Request\r\n", b"\1\0\1\0\0\0\0?"])
async def test_what_is_no_frame_goes_to_the_library_with_all_that_follows(noise: bytes) -> None:
    taken, left = await read([delivery(b"abc") + noise + delivery(b"late")])

    assert [one.body for one in taken] == [b"abc"]
    assert left == noise + delivery(b"late")


async def test_a_new_subscriber_of_a_number_is_not_removed_by_the_old_one() -> None:
    reader = asyncio.StreamReader()
    stream = DeliveryStream(reader)
    taken: list[Delivered] = []
    old, new = (lambda _: None), taken.append
    stream.subscribe(OURS, old)
    stream.subscribe(OURS, new)

    stream.unsubscribe(OURS, old)
    reader.feed_data(delivery(b"abc") + BEAT)
    await stream.readexactly(len(BEAT))

    assert [one.body for one in taken] == [b"abc"]


@given(cuts=st.lists(st.integers(1, 40), max_size=30), bodies=st.lists(st.binary(max_size=30), max_size=4))
async def test_wherever_the_network_cuts_the_stream_the_same_arrives(
    cuts: list[int], bodies: list[bytes]
) -> None:
    data = b"".join(delivery(content, tag=tag) + BEAT for tag, content in enumerate(bodies, start=1))
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    taken, left = await read([piece for piece in [*pieces, data] if piece])

    assert [(one.tag, one.body) for one in taken] == list(enumerate(bodies, start=1))
    assert left.count(BEAT) >= len(bodies)
    assert left.replace(BEAT, b"") == b""


async def test_a_frame_that_comes_slowly_is_a_sign_of_life_and_arrives_whole() -> None:
    reader = asyncio.StreamReader()
    stream = DeliveryStream(reader)
    stream.overhear(lambda _: None)

    for at in (0, 5):
        reader.feed_data(CLOSE[at : at + 5])
        assert await stream.readexactly(len(SIGN_OF_LIFE)) == SIGN_OF_LIFE
    reader.feed_data(CLOSE[10:])

    assert await stream.readexactly(len(CLOSE)) == CLOSE
    assert stream.reads == 3


async def test_before_the_connection_stands_the_library_gets_nothing_but_what_came() -> None:
    _, left = await read([CLOSE[:5], CLOSE[5:]], subscribed=False)

    assert left == CLOSE


async def test_what_the_broker_says_of_the_connection_is_overheard_and_passed_on() -> None:
    reader = asyncio.StreamReader()
    stream = DeliveryStream(reader)
    heard: list[bytes] = []
    stream.overhear(heard.append)
    blocked = marshal(commands.Connection.Blocked("low on memory"), 0)
    reader.feed_data(CLOSE + blocked)

    assert await stream.readexactly(len(CLOSE + blocked)) == CLOSE + blocked
    assert heard == [blocked[7:-1]]

"""Frames as a broker may send them at its worst, read through the stream by the library itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.frame import marshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from broker_worker.amqp.delivery_stream import Delivered, DeliveryStream

OURS, ALSO_OURS, OTHER = 1, 2, 3
FRAME_MAX = 131072  # as RabbitMQ grants it
SEGMENT = 1460  # bytes that a packet of a real network holds
BEAT = marshal(Heartbeat(), 0)
RETURN = commands.Basic.Return(312, "NO_ROUTE", "exchange", "key")
CANCEL = commands.Basic.Cancel("consumer", nowait=True)
CLOSE = commands.Channel.Close(404, "gone", 60, 20)
CONSUMED = commands.Basic.ConsumeOk("consumer")
BEATS = 3


def content(first: Frame, body: bytes, *, channel: int = OURS, part: int = FRAME_MAX - 8) -> list[bytes]:
    """The frames of a delivery or of a returned message."""
    header = ContentHeader(0, len(body), commands.Basic.Properties(message_id="an id"))
    parts = [marshal(ContentBody(body[at : at + part]), channel) for at in range(0, len(body), part)]
    return [marshal(first, channel), marshal(header, channel), *parts]


def deliver(tag: int, body: bytes, *, channel: int = OURS, part: int = FRAME_MAX - 8) -> list[bytes]:
    frame = commands.Basic.Deliver("consumer", tag, exchange="exchange", routing_key="key")
    return content(frame, body, channel=channel, part=part)


@dataclass
class Read:
    """What came out of a stream."""

    delivered: list[tuple[int, Delivered]] = field(default_factory=list)  # with the channel
    frames: list[bytes] = field(default_factory=list)  # that the library got, but for signs of life
    beats: int = 0
    error: InvalidFrameError | None = None

    def bodies(self, channel: int = OURS) -> list[bytes]:
        return [one.body for number, one in self.delivered if number == channel]


async def read(pieces: Sequence[bytes]) -> Read:
    """Let `pieces` arrive one by one, read by aiormq until they end or it gives up."""
    reader, out = asyncio.StreamReader(), Read()
    stream = DeliveryStream(reader)
    stream.subscribe(OURS, lambda one: out.delivered.append((OURS, one)))
    stream.subscribe(ALSO_OURS, lambda one: out.delivered.append((ALSO_OURS, one)))
    receiver = FrameReceiver(stream)  # type: ignore[arg-type]  # has what aiormq calls

    async def read_on() -> None:
        async for _, channel, frame in receiver:
            if isinstance(frame, Heartbeat):
                out.beats += 1
            else:
                out.frames.append(marshal(frame, channel))

    reading = asyncio.ensure_future(read_on())
    for piece in pieces:
        reader.feed_data(piece)
        await asyncio.sleep(0)
    reader.feed_eof()
    try:
        await reading
    except InvalidFrameError as error:
        out.error = error
    except AMQPConnectionError:
        pass  # the end
    return out


MIXED = [
    marshal(CONSUMED, OURS),
    *deliver(1, b"first"),
    BEAT,
    *content(RETURN, b"returned"),
    *deliver(2, b""),
    *deliver(3, b"third" * 3, part=4),
    marshal(CANCEL, OURS),
]
LEFT = [marshal(CONSUMED, OURS), *content(RETURN, b"returned"), marshal(CANCEL, OURS)]


async def test_a_stream_may_be_cut_at_any_byte() -> None:
    data = b"".join(MIXED)

    for cut in range(1, len(data)):
        out = await read([data[:cut], data[cut:]])

        assert out.bodies() == [b"first", b"", b"third" * 3]
        assert (out.frames, out.error) == (LEFT, None)


async def test_a_stream_may_come_byte_by_byte() -> None:
    out = await read([bytes((byte,)) for byte in b"".join(MIXED)])

    assert out.bodies() == [b"first", b"", b"third" * 3]
    assert (out.frames, out.error) == (LEFT, None)


async def test_bodies_fill_frames_of_the_largest_size() -> None:
    bodies = [bytes(range(256)) * 1024, b"x" * (FRAME_MAX - 8), b"y" * (FRAME_MAX - 7), b""]
    data = b"".join(frame for tag, body in enumerate(bodies, start=1) for frame in deliver(tag, body))

    out = await read([data[at : at + SEGMENT] for at in range(0, len(data), SEGMENT)])

    assert out.bodies() == bodies
    assert out.error is None


async def test_while_a_large_delivery_is_arriving_each_of_its_frames_is_a_sign_of_life() -> None:
    frames = deliver(1, b"x" * 5, part=1)

    out = await read(frames[:-1])

    assert (out.bodies(), out.beats) == ([], len(frames) - 1)


async def test_another_method_within_a_delivery_goes_to_the_library_and_the_delivery_goes_on() -> None:
    method, header, body = deliver(1, b"body")

    out = await read([method, marshal(CANCEL, OURS), header, BEAT, marshal(CLOSE, OTHER), body])

    assert out.bodies() == [b"body"]
    assert out.frames == [marshal(CANCEL, OURS), marshal(CLOSE, OTHER)]


async def test_a_delivery_cut_off_by_the_end_of_its_channel_is_nothing_to_the_next_of_that_number() -> None:
    reader, taken, lost = asyncio.StreamReader(), list[Delivered](), list[Delivered]()
    stream = DeliveryStream(reader)
    stream.subscribe(OURS, lost.append)
    closed = marshal(CLOSE, OURS)
    reader.feed_data(b"".join(deliver(1, b"half of it", part=5)[:-1]) + closed)
    await stream.readexactly(len(closed))

    stream.subscribe(OURS, taken.append)
    reader.feed_data(b"".join(deliver(1, b"whole")))
    await stream.readexactly(2 * len(BEAT))

    assert [one.body for one in taken] == [b"whole"]
    assert lost == []


METHOD, HEADER, BODY = deliver(1, b"body")
NOT_IN_ORDER = {
    "a body without a header": [METHOD, BODY],
    "a body without a header, after a whole delivery": [*deliver(1, b"x"), METHOD, BODY],
    "a second header": [METHOD, HEADER, HEADER, BODY],
    "a second delivery": [METHOD, METHOD, HEADER, BODY],
    "a second delivery within a body": [METHOD, HEADER, METHOD, HEADER, BODY],
    "a body too long": [METHOD, HEADER, marshal(ContentBody(b"bodies"), OURS)],
    "a header too short": [METHOD, b"\2\0\1\0\0\0\x0c" + HEADER[7:19] + b"\xce"],
    "a method too short": [b"\1\0\1\0\0\0\x08" + METHOD[7:15] + b"\xce"],
    "a key cut off": [b"\1\0\1" + (len(METHOD) - 10).to_bytes(4, "big") + METHOD[7:-3] + b"\xce"],
}


@pytest.mark.parametrize("case", NOT_IN_ORDER)
async def test_what_can_be_no_delivery_ends_the_connection_and_is_handed_to_nobody(case: str) -> None:
    out = await read([b"".join(NOT_IN_ORDER[case])])

    assert isinstance(out.error, InvalidFrameError)
    assert b"body" not in out.bodies()


# --- whatever is mixed, wherever it is cut ---------------------------------------------


bodies = st.binary(max_size=20)
contents = st.tuples(st.sampled_from(["deliver", "return"]), bodies, st.integers(1, 20))
methods = st.tuples(st.sampled_from(["cancel", "consumed"]), st.just(b""), st.just(1))
one_channel = st.lists(contents | methods, max_size=4)


@dataclass(frozen=True)
class Sending:
    """One frame that a broker sends, and whom it is for."""

    frame: bytes
    is_for_library: bool


def sendings(channel: int, wanted: list[tuple[str, bytes, int]]) -> list[Sending]:
    """What a broker sends on one channel."""
    out = []
    for tag, (kind, body, part) in enumerate(wanted, start=1):
        match kind:
            case "deliver":
                frames = deliver(tag, body, channel=channel, part=part)
            case "return":
                frames = content(RETURN, body, channel=channel, part=part)
            case _:
                frames = [marshal(CANCEL if kind == "cancel" else CONSUMED, channel)]
        out += [Sending(frame, kind != "deliver" or channel == OTHER) for frame in frames]
    return out


@given(data=st.data(), ours=one_channel, also_ours=one_channel, other=one_channel)
async def test_each_channel_gets_its_deliveries_and_the_library_all_else_in_order(
    data: st.DataObject,
    ours: list[tuple[str, bytes, int]],
    also_ours: list[tuple[str, bytes, int]],
    other: list[tuple[str, bytes, int]],
) -> None:
    waiting = [sendings(OURS, ours), sendings(ALSO_OURS, also_ours), sendings(OTHER, other)]
    waiting.append([Sending(BEAT, is_for_library=False)] * BEATS)
    sent = []
    while left := [queue for queue in waiting if queue]:
        sent.append(data.draw(st.sampled_from(left)).pop(0))
    wire = b"".join(one.frame for one in sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=20)) | {0, len(wire)})

    out = await read([wire[start:end] for start, end in pairwise(cuts)])

    assert out.error is None
    assert out.frames == [one.frame for one in sent if one.is_for_library]
    assert out.beats >= BEATS
    for channel, wanted in ((OURS, ours), (ALSO_OURS, also_ours)):
        got = [(one.tag, one.body) for number, one in out.delivered if number == channel]
        assert got == [
            (tag, body) for tag, (kind, body, _) in enumerate(wanted, start=1) if kind == "deliver"
        ]

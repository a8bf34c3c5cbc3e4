from __future__ import annotations

import struct
import time

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

from broker_worker.amqp.properties import encode_properties
from broker_worker.amqp.safe_decoding import (
    BrokenContentHeader,
    HooksError,
    decode_header,
    install,
    verify_hooks,
)
from broker_worker.message import Properties
from tests.support.hostile_headers import HOSTILE, ODD
from tests.support.raw_amqp import FLAG, long, short, table


@pytest.fixture(autouse=True)
def _installed() -> None:
    install()


def frame(payload: bytes, frame_type: int = 2) -> bytes:
    return struct.pack(">BHI", frame_type, 1, len(payload)) + payload + b"\xce"


def header_payload(flags: int, properties: bytes, *, body_size: int = 5) -> bytes:
    return struct.pack(">HHQH", 60, 0, body_size, flags) + properties


def decode(flags: int, properties: bytes) -> ContentHeader:
    _, _, decoded = pamqp.frame.unmarshal(frame(header_payload(flags, properties)))
    assert isinstance(decoded, ContentHeader)
    return decoded


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_still_tells_the_size_of_its_body_and_what_is_wrong(case: str) -> None:
    decoded = decode(*HOSTILE[case])

    assert isinstance(decoded, BrokenContentHeader)
    assert decoded.body_size == 5
    assert decoded.broken.startswith("the properties can't be decoded: ")


@pytest.mark.parametrize("case", ODD)
def test_an_odd_header_is_read_whole(case: str) -> None:
    decoded = decode(*ODD[case])

    assert not isinstance(decoded, BrokenContentHeader)
    assert decoded.properties.headers


def test_what_can_be_read_is_kept() -> None:
    headers = table((b"good", b"t\x01"), (b"when", b"T" + b"\xff" * 8), (b"also", b"S" + long(b"here")))
    flags = FLAG["headers"] | FLAG["timestamp"] | FLAG["message_type"]

    decoded = decode(flags, headers + b"\xff" * 8 + short(b"email.send"))

    assert decoded.properties.headers == {"good": True, "when": None, "also": "here"}
    assert decoded.properties.timestamp is None
    assert decoded.properties.message_type == "email.send"


def test_an_unknown_field_type_costs_the_rest_of_its_table_only() -> None:
    inner = table((b"a", b"t\x01"), (b"b", b"Z????"), (b"c", b"t\x01"))
    headers = table((b"inner", b"F" + inner), (b"after", b"t\x01"))

    decoded = decode(FLAG["headers"] | FLAG["message_type"], headers + short(b"x"))

    assert decoded.properties.headers == {"inner": {"a": True}, "after": True}
    assert decoded.properties.message_type == "x"


def test_a_replaced_text_is_never_longer_than_a_short_string() -> None:
    decoded = decode(FLAG["message_type"], short(b"\xff" * 255))

    assert len((decoded.properties.message_type or "").encode()) <= 255


def effort(headers: bytes) -> float:
    """CPU seconds to read `headers`, the best of several: what else the machine does is not in it."""
    seconds = []
    for _ in range(7):
        began = time.process_time()
        decode(FLAG["headers"], headers)
        seconds.append(time.process_time() - began)
    return min(seconds)


def deep(depth: int) -> bytes:
    value = b"S" + long(b"x" * 90_000)
    for _ in range(depth):
        value = b"F" + table((b"", value))
    return table((b"deep", value))


def test_nesting_costs_no_copy_of_the_rest_at_each_level() -> None:
    # read level by level, each copying what is inside, 400 levels cost four times what 100 do
    assert effort(deep(400)) < 3 * effort(deep(100))


def test_a_table_of_many_entries_is_read_in_time_linear_in_its_size() -> None:
    few, many = (table(*((b"%d" % n, b"t\x01") for n in range(count))) for count in (3_500, 14_000))

    # four times the entries: 4 if linear, 16 if each entry costs a copy of the rest
    assert effort(many) < 10 * effort(few)


def test_a_delivery_with_a_key_that_is_not_utf8_is_read_with_replacements() -> None:
    payload = (
        struct.pack(">I", commands.Basic.Deliver.index)
        + short(b"tag")
        + struct.pack(">QB", 7, 1)
        + short(b"bw.dlx")
        + short(b"\xffkey")
    )

    _, _, deliver = pamqp.frame.unmarshal(frame(payload, 1))

    assert isinstance(deliver, commands.Basic.Deliver)
    assert (deliver.consumer_tag, deliver.delivery_tag, deliver.redelivered) == ("tag", 7, True)
    assert (deliver.exchange, deliver.routing_key) == ("bw.dlx", "\ufffdkey")


def test_a_returned_message_with_a_key_that_is_not_utf8_is_read_with_replacements() -> None:
    payload = (
        struct.pack(">IH", commands.Basic.Return.index, 312)
        + short(b"NO_ROUTE")
        + short(b"")
        + short(b"\xffkey")
    )

    _, _, returned = pamqp.frame.unmarshal(frame(payload, 1))

    assert isinstance(returned, commands.Basic.Return)
    assert (returned.reply_code, returned.routing_key) == (312, "\ufffdkey")


@given(st.integers(0, 0xFFFC).map(lambda flags: flags & 0xFFFC), st.binary(max_size=300))
def test_no_bytes_make_the_decoder_raise(flags: int, properties: bytes) -> None:
    assert decode(flags, properties).body_size == 5


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
)


@given(st.dictionaries(st.text(max_size=60), scalars, max_size=8))
def test_both_decoders_read_a_healthy_header_alike(headers: dict[str, object]) -> None:
    encoded = encode_properties(Properties(type="a", correlation_id="b", headers=headers)).encoded
    payload = struct.pack(">HHQ", 60, 0, 5) + encoded
    theirs = ContentHeader()
    theirs.unmarshal(payload)

    ours = decode_header(payload)

    assert not isinstance(ours, BrokenContentHeader)
    assert ours.properties == theirs.properties
    assert (ours.properties.headers or {}) == headers


def test_installing_twice_wraps_once() -> None:
    wrapped = pamqp.frame.unmarshal

    install()

    assert pamqp.frame.unmarshal is wrapped


def test_a_library_that_decodes_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    verify_hooks()
    monkeypatch.setattr(pamqp.frame, "unmarshal", pamqp.frame.unmarshal.wraps_pamqp)  # type: ignore[attr-defined]

    with pytest.raises(HooksError):
        verify_hooks()


def test_a_frame_without_an_end_is_still_an_error() -> None:
    broken = frame(header_payload(FLAG["timestamp"], b"\xff" * 8))[:-1] + b"\0"

    with pytest.raises(PAMQPException):
        pamqp.frame.unmarshal(broken)

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.header import ContentHeader

from broker_worker.amqp.properties import decode_properties, encode_properties, read_properties, short
from broker_worker.amqp.safe_decoding import BrokenContentHeader, decode_header
from broker_worker.errors import PublishError
from broker_worker.message import Properties

texts = st.text(max_size=50)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001 - bounds
        lambda time: time.replace(microsecond=0)
    )
)


def sent(properties: Properties) -> ContentHeader:
    return decode_header(struct.pack(">HHQ", 60, 0, 0) + encode_properties(properties).encoded)


@given(
    st.builds(
        Properties,
        type=texts,
        content_type=texts,
        correlation_id=texts,
        reply_to=texts,
        app_id=texts,
        headers=st.dictionaries(texts, scalars, max_size=5),
    )
)
def test_properties_arrive_as_they_were_sent(properties: Properties) -> None:
    arrived = read_properties(sent(properties))

    for name in ("type", "content_type", "correlation_id", "reply_to", "app_id"):
        assert (getattr(arrived, name) or "") == getattr(properties, name)
    assert arrived.headers == properties.headers
    assert arrived.broken is None


def test_each_publish_has_an_id_of_its_own_and_is_persistent_and_without_a_user() -> None:
    properties = Properties(message_id="task-1", user_id="somebody")

    first, second = sent(properties).properties, sent(properties).properties

    assert len({first.message_id, second.message_id, "task-1"}) == 3
    assert (first.delivery_mode, first.user_id, first.priority) == (2, None, None)


@pytest.mark.parametrize("field", ["correlation_id", "reply_to", "app_id", "content_type"])
def test_a_text_too_long_for_its_property_is_named(field: str) -> None:
    with pytest.raises(PublishError, match=field):
        encode_properties(Properties(**{field: "x" * 256}))  # type: ignore[arg-type]


def test_a_time_before_1970_is_named() -> None:
    with pytest.raises(PublishError, match="timestamp"):
        encode_properties(Properties(timestamp=datetime(1969, 1, 1, tzinfo=UTC)))


@given(st.text())
def test_a_shortened_text_fits_and_is_a_beginning(text: str) -> None:
    assert text.startswith(short(text))
    assert len(short(text).encode()) <= 255


def test_what_is_broken_says_so() -> None:
    header = BrokenContentHeader()
    header.broken = "why"

    assert read_properties(header).broken == "why"


names = st.text(max_size=20)
values = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**31), 2**31 - 1),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
)
plain_properties = st.builds(
    Properties,
    type=st.none() | names,
    content_type=st.none() | names,
    content_encoding=st.none() | names,
    correlation_id=st.none() | names,
    reply_to=st.none() | names,
    expiration=st.none() | names,
    app_id=st.none() | names,
    timestamp=st.none() | st.datetimes(timezones=st.just(UTC)).filter(lambda each: each.year > 1970),
    headers=st.dictionaries(names, values, max_size=3),
)


@given(plain_properties)
def test_the_short_way_to_decode_properties_gives_what_the_long_one_gives(properties: Properties) -> None:
    payload = struct.pack(">HHQ", 60, 0, 0) + encode_properties(properties).encoded

    assert decode_properties(payload) == read_properties(decode_header(payload))


@given(st.binary(min_size=2, max_size=60))
def test_whatever_stands_for_properties_is_decoded_alike(noise: bytes) -> None:
    payload = struct.pack(">HHQ", 60, 0, 0) + noise

    assert repr(decode_properties(payload)) == repr(
        read_properties(decode_header(payload))
    )  # NaN is not itself

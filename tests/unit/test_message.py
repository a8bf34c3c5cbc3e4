from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_worker.amqp.properties import encode_properties
from broker_worker.message import (
    ATTEMPT,
    EPOCH,
    MAX_EPOCH,
    MAX_HEADER_BYTES,
    NOT_AFTER,
    TASK_ID,
    Message,
    Properties,
    Scalar,
    TaskId,
    Undecodable,
    Unidentified,
    copy_properties,
    decode,
    from_record,
    is_json,
    media_type,
    publisher_headers,
    stamped_properties,
    to_record,
)
from broker_worker.outcome import Reason

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SENT = Properties(type="email.send", message_id="m-1")


def read(
    properties: Properties, body: bytes = b"{}", *, default_name: str | None = None
) -> Message | Unidentified | Undecodable:
    return decode(properties, body, queue="email", now=NOW, max_body_bytes=100, default_name=default_name)


def accepted(properties: Properties, body: bytes = b"{}") -> Message:
    message = read(properties, body)
    assert isinstance(message, Message)
    return message


def refused(properties: Properties, body: bytes = b"{}") -> Undecodable:
    undecodable = read(properties, body)
    assert isinstance(undecodable, Undecodable)
    return undecodable


def with_headers(headers: Mapping[str, object]) -> Properties:
    return replace(SENT, headers=headers)


# --- the task's name -----------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "default", "name"),
    [
        pytest.param(Properties(type="a", headers={"task-type": "b"}), "c", "a", id="the property first"),
        pytest.param(Properties(headers={"task-type": "b"}), "c", "b", id="then the header"),
        pytest.param(Properties(), "c", "c", id="then the queue's default"),
        pytest.param(Properties(type="", headers={"task-type": ""}), "c", "c", id="empty is none"),
    ],
)
def test_the_name_is_the_type_then_the_header_then_the_default(
    properties: Properties, default: str, name: str
) -> None:
    message = read(replace(properties, message_id="m-1"), default_name=default)

    assert isinstance(message, Message)
    assert message.task == TaskId("email", name, "m-1")


def test_a_message_without_any_name_is_malformed() -> None:
    assert refused(Properties(message_id="m-1")).reason is Reason.MALFORMED


@pytest.mark.parametrize("name", [b"bytes", 7, True, "n" * 201, "a\0b", "\ud800"], ids=repr)
def test_a_name_that_is_no_storable_text_is_malformed(name: object) -> None:
    undecodable = refused(Properties(message_id="m-1", headers={"task-type": name}))

    assert undecodable.reason is Reason.MALFORMED
    assert undecodable.message is None


def test_a_name_of_two_hundred_characters_is_taken() -> None:
    assert accepted(replace(SENT, type="ü" * 200)).task.name == "ü" * 200


# --- the task's id -------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "task_id"),
    [
        pytest.param(
            Properties(message_id="m", headers={TASK_ID: "ours", "task-id": "h"}),
            "ours",
            id="our copy's first",
        ),
        pytest.param(Properties(message_id="m", headers={"task-id": "h"}), "m", id="then message_id"),
        pytest.param(Properties(headers={"task-id": "h"}), "h", id="then the header"),
        pytest.param(Properties(message_id="", headers={"task-id": "h"}), "h", id="empty is none"),
        pytest.param(Properties(message_id="i" * 200), "i" * 200, id="the longest"),
    ],
)
def test_the_id_is_our_own_header_then_message_id_then_the_header(
    properties: Properties, task_id: str
) -> None:
    assert accepted(replace(properties, type="email.send")).task.id == task_id


@pytest.mark.parametrize(
    "properties",
    [Properties(), Properties(message_id=""), Properties(headers={"task-id": "", TASK_ID: None})],
    ids=["none", "empty", "empty headers"],
)
def test_a_message_without_an_id_is_unidentified(properties: Properties) -> None:
    assert read(replace(properties, type="email.send")) == Unidentified("email.send")


@pytest.mark.parametrize("task_id", [7, b"m", True, 1.5, NOW, "i" * 201, "a\0", "\udfff", ["m"]], ids=repr)
def test_an_id_that_is_no_storable_text_is_malformed(task_id: object) -> None:
    undecodable = refused(Properties(type="email.send", headers={"task-id": task_id}))

    assert undecodable.reason is Reason.MALFORMED
    assert undecodable.message is None


# --- body and content ----------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "media"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("application/json; charset=utf-8", "application/json"),
        ("Application/JSON", "application/json"),
        ("application/cloudevents+json", "application/cloudevents+json"),
        ("text/plain ; x=1", "text/plain"),
    ],
)
def test_a_media_type_is_the_content_type_without_case_and_parameters(
    content_type: str | None, media: str
) -> None:
    assert media_type(content_type) == media
    assert accepted(replace(SENT, content_type=content_type)).media_type == media


@pytest.mark.parametrize(
    ("media", "expected"),
    [("application/json", True), ("application/x+json", True), ("text/x+json", False), ("text/plain", False)],
)
def test_json_is_what_its_media_type_says(media: str, *, expected: bool) -> None:
    assert is_json(media) is expected


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "UTF-8", "utf8", " identity "], ids=repr)
def test_a_content_encoding_that_changes_nothing_is_taken(encoding: str | None) -> None:
    assert accepted(replace(SENT, content_encoding=encoding)).body == b"{}"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "base64", "utf-16"])
def test_another_content_encoding_is_malformed_with_its_identity(encoding: str) -> None:
    undecodable = refused(replace(SENT, content_encoding=encoding))

    assert undecodable.reason is Reason.MALFORMED
    assert undecodable.message is not None
    assert undecodable.message.task.id == "m-1"


def test_a_body_of_the_largest_size_is_taken_and_a_larger_one_is_oversize() -> None:
    assert len(accepted(SENT, b"x" * 100).body) == 100
    undecodable = refused(SENT, b"x" * 101)
    assert undecodable.reason is Reason.OVERSIZE
    assert undecodable.message is not None
    assert undecodable.message.body == b"x" * 101


def test_an_oversize_message_without_an_id_is_refused_and_not_stamped() -> None:
    undecodable = refused(Properties(type="email.send"), b"x" * 101)

    assert (undecodable.reason, undecodable.message) == (Reason.OVERSIZE, None)


def test_properties_that_the_wire_broke_are_malformed() -> None:
    undecodable = refused(replace(SENT, broken="timestamp: out of range"))

    assert (undecodable.reason, undecodable.message) == (Reason.MALFORMED, None)
    assert undecodable.failure.message == "timestamp: out of range"


def test_a_digest_tells_bodies_and_media_types_apart_but_not_parameters() -> None:
    message = accepted(SENT)

    assert message.digest() == accepted(replace(SENT, content_type="application/json; v=2")).digest()
    assert message.digest() != accepted(SENT, b"{} ").digest()
    assert message.digest() != accepted(replace(SENT, content_type="text/plain")).digest()


def test_what_the_publisher_said_of_itself_is_kept() -> None:
    message = accepted(
        replace(SENT, correlation_id="c", reply_to="r", app_id="a", user_id="u", timestamp=NOW)
    )

    assert (message.correlation_id, message.reply_to) == ("c", "r")
    assert (message.app_id, message.user_id, message.published_at) == ("a", "u", NOW)


# --- times ---------------------------------------------------------------------


def test_an_expiration_counts_from_the_timestamp_and_a_second_more() -> None:
    published = NOW - timedelta(hours=1)

    message = accepted(replace(SENT, expiration="5000", timestamp=published))

    assert message.not_after == published + timedelta(seconds=6)


def test_an_expiration_without_a_timestamp_counts_from_the_arrival() -> None:
    assert accepted(replace(SENT, expiration="0")).not_after == NOW + timedelta(seconds=1)


def test_the_earlier_of_expiration_and_not_after_counts() -> None:
    early = NOW + timedelta(milliseconds=1)
    late = NOW + timedelta(days=1)

    assert accepted(replace(with_headers({NOT_AFTER: early}), expiration="5000")).not_after == early
    assert accepted(replace(with_headers({NOT_AFTER: late}), expiration="5000")).not_after == NOW + timedelta(
        seconds=6
    )


def test_an_expiration_beyond_all_dates_is_the_last_one() -> None:
    assert accepted(replace(SENT, expiration=str(2**53))).not_after == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("expiration", ["", "soon", "1.5", "9" * 400, "1e3"])
def test_an_expiration_that_is_no_number_is_malformed(expiration: str) -> None:
    assert refused(replace(SENT, expiration=expiration)).reason is Reason.MALFORMED


MOMENT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
UNIX = int(MOMENT.timestamp())


@pytest.mark.parametrize("header", ["not-after", "deliver-at"])
@pytest.mark.parametrize(
    "value",
    [
        MOMENT,
        MOMENT.replace(tzinfo=None),
        MOMENT.astimezone(timezone(timedelta(hours=2))),
        UNIX,
        float(UNIX),
        Decimal(UNIX),
        str(UNIX),
        f" {UNIX}.0 ",
        "2030-01-02T03:04:05Z",
        "2030-01-02T03:04:05",
        "2030-01-02T05:04:05+02:00",
        "2030-01-02 03:04:05+00:00",
    ],
    ids=repr,
)
def test_a_time_is_read_in_every_form_that_clients_send(header: str, value: object) -> None:
    message = accepted(with_headers({header: value}))

    read_time = message.not_after if header == "not-after" else message.deliver_at
    assert read_time == MOMENT
    assert read_time.tzinfo is not None


@pytest.mark.parametrize("header", ["not-after", "deliver-at"])
@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        b"2030-01-02",
        "tomorrow",
        "",
        1e99,
        -1e99,
        10**30,
        float("nan"),
        float("inf"),
        "²",
        Decimal("NaN"),
        ["2030-01-02"],
        {"at": 1},
        "1.2.3",
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:59-05:00",
    ],
    ids=repr,
)
def test_a_time_that_can_not_be_read_is_malformed_with_its_identity(header: str, value: object) -> None:
    undecodable = refused(with_headers({header: value}))

    assert undecodable.reason is Reason.MALFORMED
    assert undecodable.message is not None


def test_a_header_of_none_is_no_time() -> None:
    message = accepted(with_headers({"not-after": None, "deliver-at": None}))

    assert (message.not_after, message.deliver_at) == (None, None)


# --- the epoch -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("forged", "epoch"),
    [
        (None, 0),
        (3, 3),
        (-1, 0),
        (2**40, MAX_EPOCH),
        (True, 0),
        (b"3", 0),
        ("3", 0),
        (1e99, 0),
        (3.0, 0),
        ([], 0),
    ],
    ids=repr,
)
def test_an_epoch_is_a_whole_number_or_nothing(forged: object, epoch: int) -> None:
    assert accepted(with_headers({EPOCH: forged})).epoch == epoch


# --- headers and copies --------------------------------------------------------


def test_only_the_publishers_own_scalar_headers_are_kept() -> None:
    kept = {"traceparent": "00-1", "n": 1, "b": b"\0", "t": NOW, "d": Decimal(1), "none": None, "f": 1.5}
    dropped: dict[str, object] = {
        "x-death": [{}],
        "x-mine": 1,
        "bw-attempt": 3,
        "CC": "a",
        "BCC": "b",
        "cc": "c",
        "list": [1],
        "map": {},
    }

    assert publisher_headers({**kept, **dropped}) == kept


def test_a_copy_carries_what_is_on_the_list_and_nothing_else() -> None:
    sent = Properties(
        type="email.send",
        message_id="m-1",
        content_type="text/plain",
        correlation_id="c",
        reply_to="r",
        expiration="5000",
        timestamp=NOW,
        app_id="a",
        user_id="u",
        headers={"tenant-id": "t", "x-death": "x", "CC": "a", "BCC": "b", "expiration-like": 1},
    )

    copy = copy_properties(accepted(sent), epoch=4, attempt=3)

    assert copy == Properties(
        type="email.send",
        content_type="text/plain",
        correlation_id="c",
        reply_to="r",
        timestamp=NOW,
        app_id="a",
        headers={
            "tenant-id": "t",
            "expiration-like": 1,
            NOT_AFTER: (NOW + timedelta(seconds=6)).isoformat(),
            TASK_ID: "m-1",
            EPOCH: 4,
            ATTEMPT: 3,
        },
    )


def test_a_stamped_copy_is_the_same_message_with_an_id() -> None:
    sent = Properties(
        expiration="5000",
        timestamp=NOW,
        user_id="u",
        app_id="a",
        correlation_id="c",
        headers={"task-type": "email.send", "x-death": 1, "tenant-id": "t"},
    )

    stamped = stamped_properties(sent, name="email.send", task_id="fresh", now=NOW)

    message = accepted(stamped)
    assert (stamped.expiration, stamped.user_id, stamped.message_id) == (None, None, None)
    assert message.task == TaskId("email", "email.send", "fresh")
    assert message.not_after == NOW + timedelta(seconds=6)
    assert (message.epoch, message.app_id, message.correlation_id) == (0, "a", "c")
    assert message.headers["tenant-id"] == "t"


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
scalars: st.SearchStrategy[Scalar] = st.one_of(
    st.none(),
    texts,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.binary(max_size=9),
    moments,
    st.decimals(allow_nan=False, allow_infinity=False),
)
sent_properties = st.builds(
    Properties,
    type=texts,
    message_id=texts,
    content_type=st.none() | texts,
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
    expiration=st.none() | st.integers(0, 2**31).map(str),
    timestamp=st.none() | moments,
    app_id=st.none() | texts,
    user_id=st.none() | texts,
    headers=st.dictionaries(texts, scalars | st.lists(st.integers()), max_size=4).flatmap(
        lambda own: st.fixed_dictionaries({}, optional={NOT_AFTER: moments, "deliver-at": moments}).map(
            lambda times: {**own, **times}
        )
    ),
)


def without_bookkeeping(message: Message) -> Message:
    """What a copy promises to show: all but the epoch, the checked user, and how a time was written."""
    headers = {name: value for name, value in message.headers.items() if name != NOT_AFTER}
    return replace(message, headers=headers, epoch=0, user_id=None)


@settings(max_examples=50)
@given(sent_properties, st.binary(max_size=20), st.integers(0, MAX_EPOCH))
def test_a_copy_and_a_copy_of_a_copy_decode_to_the_same_message(
    properties: Properties, body: bytes, epoch: int
) -> None:
    message = accepted(properties, body)

    first = accepted(copy_properties(message, epoch=epoch, attempt=1), body)
    second = accepted(copy_properties(first, epoch=epoch, attempt=1), body)

    assert first.epoch == epoch
    assert second == first
    assert without_bookkeeping(first) == without_bookkeeping(message)


def as_json(record: dict[str, object]) -> dict[str, object]:
    """What a column of type json gives back."""
    stored: dict[str, object] = json.loads(json.dumps(record, allow_nan=False))
    return stored


@settings(max_examples=50)
@given(sent_properties, st.binary(max_size=20))
def test_a_stored_message_is_the_same_message(properties: Properties, body: bytes) -> None:
    message = accepted(properties, body)

    assert from_record(message.task, body, as_json(to_record(message)), epoch=message.epoch) == message


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_a_number_that_json_lacks_is_stored_all_the_same(value: float) -> None:
    message = accepted(with_headers({"n": value}))

    assert from_record(message.task, b"{}", as_json(to_record(message)), epoch=0).headers["n"] == value


@settings(max_examples=50)
@given(
    st.builds(
        Properties,
        type=st.none() | st.text(max_size=5),
        message_id=st.none() | st.text(max_size=5),
        content_encoding=st.none() | st.text(max_size=9),
        expiration=st.none() | st.text(max_size=9),
        headers=st.dictionaries(
            st.sampled_from(["task-type", "task-id", TASK_ID, EPOCH, NOT_AFTER, "deliver-at"]),
            scalars | st.floats() | st.decimals() | st.lists(st.integers()) | st.text(),
        ),
    ),
    st.binary(max_size=120),
)
def test_whatever_arrives_is_read_or_refused_and_never_raises(properties: Properties, body: bytes) -> None:
    assert isinstance(read(properties, body), Message | Unidentified | Undecodable)


def test_headers_that_no_copy_could_carry_are_oversize_with_their_identity() -> None:
    refusal = refused(Properties(type="email.send", message_id="m-1", headers={"h": "x" * 70_000}))

    assert refusal.reason is Reason.OVERSIZE
    assert refusal.message is not None


def test_a_message_that_expired_without_an_id_is_stamped_as_expired() -> None:
    sent = Properties(type="email.send")

    stamped = stamped_properties(sent, name="email.send", task_id="fresh", now=NOW, is_expired=True)

    assert accepted(stamped).not_after == NOW


def test_many_small_headers_count_as_what_they_take_on_the_wire() -> None:
    headers: dict[str, object] = {chr(0x10000 + number): "" for number in range(13_104)}
    properties = Properties(type="email.send", headers=headers)

    assert len(encode_properties(properties).encoded) > MAX_HEADER_BYTES
    assert refused(properties).reason is Reason.OVERSIZE

"""The quick reader of header tables gives what the long way gives, or leaves it to that."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_worker.amqp import properties
from broker_worker.amqp.properties import decode_properties, encode_properties, read_properties
from broker_worker.amqp.quick_tables import read_quickly
from broker_worker.amqp.safe_decoding import decode_header
from broker_worker.message import Properties

BEGINNING = struct.pack(">HHQ", 60, 0, 0)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DEATH = {
    "count": 1,
    "reason": "expired",
    "queue": "bw.delay.1000",
    "time": MOMENT,
    "exchange": "bw.delay.1000",
    "routing-keys": ["email"],
}
OF_A_RETRY: dict[str, object] = {
    "bw-task-id": "task-1",
    "bw-epoch": 2,
    "x-death": [DEATH],
    "x-first-death-queue": "bw.delay.1000",
    "big": 2**40,
    "yes": True,
    "half": 0.5,
    "nothing": None,
}
names = st.text(max_size=10)
tables = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, width=32)
    | st.text(max_size=10)
    | st.just(MOMENT),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(names, each, max_size=3),
    max_leaves=12,
)


def payload(headers: dict[str, object]) -> bytes:
    return BEGINNING + encode_properties(Properties(type="t", headers=headers)).encoded


def both_ways(header: bytes) -> tuple[str, str]:
    return repr(decode_properties(header)), repr(read_properties(decode_header(header)))


def nested(depth: int) -> dict[str, object]:
    return {"deeper": nested(depth - 1)} if depth else {}


def test_the_headers_of_a_retry_are_read_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    header = payload(OF_A_RETRY)
    monkeypatch.delattr(properties, "decode_header")

    assert decode_properties(header).headers == OF_A_RETRY


@given(st.dictionaries(names, tables | st.binary(max_size=10), max_size=4))
def test_any_table_is_read_alike(headers: dict[str, object]) -> None:
    quick, slow = both_ways(payload(headers))

    assert quick == slow


@pytest.mark.parametrize("depth", range(1, 40))
def test_a_table_of_any_depth_is_read_alike(depth: int) -> None:
    quick, slow = both_ways(payload(nested(depth)))

    assert quick == slow


@given(st.data())
def test_a_table_with_bytes_changed_is_read_alike(data: st.DataObject) -> None:
    header = bytearray(payload(OF_A_RETRY))
    for _ in range(data.draw(st.integers(1, 3))):
        header[data.draw(st.integers(14, len(header) - 1))] = data.draw(st.integers(0, 255))

    quick, slow = both_ways(bytes(header))

    assert quick == slow


@pytest.mark.parametrize("length", range(14, len(payload(OF_A_RETRY))))
def test_a_table_that_is_cut_is_read_alike(length: int) -> None:
    quick, slow = both_ways(payload(OF_A_RETRY)[:length])

    assert quick == slow


def test_it_says_where_the_table_ends() -> None:
    table = struct.pack(">I", 4) + b"\x01aVV"

    with pytest.raises(ValueError, match=r"without a value|reaches beyond|unusual"):
        read_quickly(table, 0)
    assert read_quickly(b"\0" + struct.pack(">I", 3) + b"\x01aV" + b"rest", 1) == (8, {"a": None})


UNUSUAL = {
    "a text that reaches beyond its table": b"\x01aS" + struct.pack(">I", 5) + b"xx",
    "a number that reaches beyond its table": b"\x01aI\0\0",
    "a moment after 2106": b"\x01aT" + struct.pack(">Q", 2**32),
    "a type that nobody knows": b"\x01a?",
}


@pytest.mark.parametrize("table", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_is_left_to_the_long_way(table: bytes) -> None:
    with pytest.raises(ValueError, match=r"beyond the end|milliseconds|unusual"):
        read_quickly(struct.pack(">I", len(table)) + table + b"more that follows", 0)


def test_what_is_nested_very_deep_is_left_to_the_long_way() -> None:
    with pytest.raises(ValueError, match="unusual"):
        read_quickly(payload(nested(20))[14:], 0)

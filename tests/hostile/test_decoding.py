"""Whatever can stand on the wire is read without an error, and what is kept of it can be sent and stored."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_worker.amqp.properties import decode_properties, encode_properties
from broker_worker.dead_letter import (
    carried_properties,
    letter_of_stranger,
    letter_of_task,
    letter_outgoing,
)
from broker_worker.message import (
    Message,
    Properties,
    Undecodable,
    Unidentified,
    copy_properties,
    decode,
    from_record,
    stamped_properties,
    to_record,
)
from broker_worker.outcome import Failure, Reason
from broker_worker.store.rows import dump
from tests.hostile import bodies, envelopes, headers, properties
from tests.hostile.case import LIMIT, ORDER, Case, sent
from tests.support.raw_amqp import FLAG, long, short, table

pytestmark = pytest.mark.timeout(180)

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
FAILURE = Failure("ContractError", "why")
CASES = [
    pytest.param(case, id=f"{module.__name__.rpartition('.')[2]}: {case}")
    for module in (bodies, envelopes, properties, headers)
    for case in module.CASES
]


def content_header(flags: int, encoded: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, 5, flags) + encoded


def read(found: Properties, body: bytes = b"{}") -> Message | Unidentified | Undecodable:
    return decode(found, body, queue="default", now=NOW, max_body_bytes=LIMIT)


def send_and_store_all_that_may_come_of(found: Properties) -> None:
    """Do what the daemon does with a message: none of it may raise."""
    arrived = read(found)
    letter = letter_of_stranger(found, b"{}", queue="default", reason=Reason.MALFORMED, failure=FAILURE)
    message = arrived if isinstance(arrived, Message) else None
    if isinstance(arrived, Undecodable):
        message = arrived.message
    if isinstance(arrived, Unidentified):
        encode_properties(stamped_properties(found, name=arrived.name, task_id="1", now=NOW))
    if message is not None:
        record = json.loads(dump(to_record(message)))
        again = from_record(message.task, message.body, record, epoch=message.epoch)
        assert repr(again) == repr(message)  # NaN is not itself
        encode_properties(copy_properties(message, epoch=2, attempt=1))
        letter = letter_of_task(message, reason=Reason.GAVE_UP, failure=FAILURE, attempt=1, epoch=1)
    stored = json.loads(dump(letter.record))
    encode_properties(letter_outgoing(letter, worker="", failed_at=NOW).properties)
    encode_properties(carried_properties(stored))


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_read_and_what_is_kept_of_it_can_be_sent_and_stored(case: Case) -> None:
    found = decode_properties(content_header(case.flags, case.properties))

    if case.end.state is None and case.end.reason == "malformed":
        assert isinstance(read(found), Undecodable)
    send_and_store_all_that_may_come_of(found)


def of(kind: bytes, layout: str, numbers: st.SearchStrategy[float]) -> st.SearchStrategy[bytes]:
    return numbers.map(lambda number: kind + struct.pack(layout, number))


def within(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


NAMES = st.binary(max_size=12) | st.text(max_size=4).map(str.encode)
SCALARS = st.one_of(
    st.binary(max_size=20).map(lambda value: b"S" + long(value)),
    st.text(max_size=20).map(lambda value: b"S" + long(value.encode())),
    st.binary(max_size=20).map(lambda value: b"x" + long(value)),
    st.sampled_from([b"V", b"t\0", b"t\1", b"t\xff"]),
    of(b"b", ">b", within(8, signed=True)),
    of(b"B", ">B", within(8, signed=False)),
    of(b"s", ">h", within(16, signed=True)),
    of(b"u", ">H", within(16, signed=False)),
    of(b"I", ">i", within(32, signed=True)),
    of(b"i", ">I", within(32, signed=False)),
    of(b"l", ">q", within(64, signed=True)),
    of(b"L", ">Q", within(64, signed=False)),
    of(b"T", ">Q", within(64, signed=False) | st.integers(0, 2**34)),
    of(b"f", ">f", st.floats(width=32)),
    of(b"d", ">d", st.floats()),
    st.binary(min_size=5, max_size=5).map(lambda value: b"D" + value),
    st.binary(min_size=1, max_size=6),
)


def deeper(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    fields = st.lists(st.tuples(NAMES, values), max_size=4)
    lists = st.lists(values, max_size=4).map(lambda each: b"A" + long(b"".join(each)))
    return fields.map(lambda each: b"F" + table(*each)) | lists


VALUES = st.recursive(SCALARS, deeper, max_leaves=12)
OUR_NAMES = st.sampled_from(
    [b"bw-epoch", b"bw-task-id", b"task-id", b"task-type", b"not-after", b"deliver-at", b"x-death", b"CC"]
)
TABLES = st.lists(st.tuples(NAMES | OUR_NAMES, VALUES), max_size=6).map(lambda fields: table(*fields))
ENCODED: dict[str, st.SearchStrategy[bytes]] = {
    name: NAMES.map(short) for name in ORDER if name not in {"headers", "timestamp"}
} | {
    "headers": TABLES,
    "timestamp": of(b"", ">Q", within(64, signed=False) | st.integers(0, 2**34)),
    "delivery_mode": st.binary(min_size=1, max_size=1),
    "priority": st.binary(min_size=1, max_size=1),
    "expiration": st.integers(-(10**25), 10**25).map(lambda number: short(str(number).encode())),
}
assert set(ENCODED) == set(FLAG)


@given(st.fixed_dictionaries({}, optional=ENCODED))
def test_any_properties_are_read_and_what_is_kept_of_them_can_be_sent_and_stored(
    properties: dict[str, bytes],
) -> None:
    send_and_store_all_that_may_come_of(decode_properties(content_header(*sent(**properties))))


@given(st.fixed_dictionaries({}, optional=ENCODED), st.data())
def test_properties_that_are_cut_off_or_damaged_are_read_too(
    properties: dict[str, bytes], data: st.DataObject
) -> None:
    header = bytearray(content_header(*sent(**properties)))
    for _ in range(data.draw(st.integers(0, 3))):
        header[data.draw(st.integers(12, len(header) - 1))] = data.draw(st.integers(0, 255))

    send_and_store_all_that_may_come_of(
        decode_properties(bytes(header[: data.draw(st.integers(14, len(header)))]))
    )

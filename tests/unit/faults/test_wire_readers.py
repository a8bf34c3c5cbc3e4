"""The witness reads both protocols from any pieces, changes nothing of them, and never fails."""

from __future__ import annotations

import json
import struct
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader

from tests.faults.amqp_wire import AmqpReader
from tests.faults.postgres_wire import PostgresReader
from tests.faults.records import Wire, digest_of

BODY = b'{"x": 1}'


def frames(*parts: tuple[Frame | ContentHeader | ContentBody | ProtocolHeader, int]) -> bytes:
    return b"".join(pamqp.frame.marshal(part, channel) for part, channel in parts)


def content(channel: int, body: bytes = BODY, **properties: Any) -> bytes:  # noqa: ANN401 - those of pamqp
    header = ContentHeader(body_size=len(body), properties=commands.Basic.Properties(**properties))
    return frames((header, channel), *([(ContentBody(body), channel)] if body else []))


def sent_by_client() -> bytes:
    return (
        frames((ProtocolHeader(), 0), (commands.Channel.Open(), 1), (commands.Confirm.Select(), 1))
        + frames((commands.Basic.Consume(queue="bw.q.main", consumer_tag="c1"), 2))
        + frames((commands.Basic.Publish(exchange="bw.delay.1000", routing_key="main", mandatory=True), 1))
        + content(
            1,
            message_id="unique",
            message_type="plain",
            content_type="application/json",
            headers={"bw-task-id": "t-1", "bw-epoch": 300, "bw-attempt": 2},
        )
        + frames((commands.Basic.Ack(7, multiple=True), 2))
        + frames((commands.Basic.Nack(8, multiple=False, requeue=True), 2))
        + frames((commands.Basic.Reject(9, requeue=False), 2))
    )


def sent_by_server() -> bytes:
    return (
        frames((commands.Basic.ConsumeOk("c1"), 2))
        + frames((commands.Basic.Deliver("c1", 7, True, "bw.tasks", "main"), 2))
        + content(2, body=b"", message_id="t-2", message_type="plain")
        + frames((commands.Basic.Ack(1, multiple=False), 1))
        + frames((commands.Basic.Cancel("c1"), 2))
        + frames((commands.Channel.Close(406, "no", 0, 0), 2))
    )


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """In pieces of the given sizes, and the rest."""
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [part for part in [*parts, data] if part]


def shown(records: list[Wire]) -> list[tuple[str, int, str]]:
    return [(record.kind, record.tag, record.id) for record in records]


@given(st.lists(st.integers(1, 40), max_size=60))
def test_what_a_client_says_is_read_from_any_pieces(sizes: list[int]) -> None:
    reader = AmqpReader()
    pieces = [piece for part in cut(sent_by_client(), sizes) for piece in reader.from_client(part)]

    assert b"".join(piece for piece, _ in pieces) == sent_by_client()
    records = [record for _, seen in pieces for record in seen]
    assert shown(records) == [("publish", 1, "t-1"), ("ack", 7, ""), ("nack", 8, ""), ("reject", 9, "")]
    publish, ack, nack, reject = records
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("bw.delay.1000", "main", True)
    assert (publish.name, publish.message_id, publish.epoch, publish.attempt) == ("plain", "unique", 300, 2)
    assert publish.digest == digest_of("application/json", BODY)
    assert sorted(publish.headers) == ["bw-attempt", "bw-epoch", "bw-task-id"]
    assert (ack.multiple, nack.requeue, reject.requeue) == (True, True, False)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_what_a_server_says_is_read_from_any_pieces(sizes: list[int]) -> None:
    reader = AmqpReader()
    reader.from_client(sent_by_client())
    pieces = [piece for part in cut(sent_by_server(), sizes) for piece in reader.from_server(part)]

    assert b"".join(piece for piece, _ in pieces) == sent_by_server()
    records = [record for _, seen in pieces for record in seen]
    assert shown(records) == [
        ("deliver", 7, "t-2"), ("confirm", 1, ""), ("cancelled", 0, ""), ("channel_lost", 0, ""),
    ]  # fmt: skip
    assert (records[0].amqp_queue, records[0].redelivered) == ("bw.q.main", True)
    assert records[2].amqp_queue == "bw.q.main"


def test_deliveries_count_as_unsettled_until_they_are_settled() -> None:
    reader = AmqpReader()
    reader.from_client(frames((commands.Basic.Consume(queue="bw.q.main", consumer_tag="c1"), 1)))
    for tag in (1, 2, 3):
        deliver = frames((commands.Basic.Deliver("c1", tag, False, "", "main"), 1))
        reader.from_server(deliver + content(1, message_id=f"t-{tag}"))

    reader.from_client(frames((commands.Basic.Ack(2, multiple=True), 1)))

    assert reader.count_unsettled("bw.q.main") == 1


@pytest.mark.parametrize("reader", [AmqpReader, PostgresReader])
@given(st.lists(st.one_of(st.binary(max_size=200), st.just(sent_by_client()), st.just(sent_by_server()))))
def test_no_bytes_make_a_reader_fail_or_change_what_it_carries(
    reader: type[AmqpReader | PostgresReader], parts: list[bytes]
) -> None:
    reading = reader()

    up = b"".join(piece for part in parts for piece, _ in reading.from_client(part))
    down = b"".join(piece for part in parts for piece, _ in reading.from_server(part))

    assert b"".join(parts).startswith(up)
    assert b"".join(parts).startswith(down)


def test_a_message_that_is_too_long_to_be_held_is_carried_as_it_comes() -> None:
    reader = PostgresReader()
    reader.from_server(ready())
    row = message(b"D", b"x" * 3_000_000)

    pieces = [piece for part in cut(row + ready(), [65_536] * 45) for piece in reader.from_server(part)]

    assert len(pieces) > 40
    assert b"".join(piece for piece, _ in pieces) == row + ready()


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content) + 4) + content


def ready(state: bytes = b"I") -> bytes:
    return message(b"Z", state)


def start() -> bytes:
    return struct.pack(">II", 8, 196_608)


def query(statement: str) -> bytes:
    return message(b"Q", statement.encode() + b"\0")


def talk(*said: tuple[str, bytes]) -> list[str]:
    """Who said what, in order; the kinds of what was understood."""
    reader = PostgresReader()
    reader.from_client(start())
    records: list[str] = []
    for who, data in said:
        pieces = reader.from_client(data) if who == "client" else reader.from_server(data)
        records += [record.kind for _, seen in pieces for record in seen]
    return records


def test_a_commit_is_seen_when_it_is_sent_and_when_it_is_answered() -> None:
    assert talk(
        ("client", query("BEGIN; SELECT set_config('a', 'b', true)")),
        ("server", ready(b"T")),
        ("client", query("UPDATE t SET x = 1")),
        ("server", ready(b"T")),
        ("client", query("SELECT finish(1); COMMIT;")),
        ("server", message(b"C", b"COMMIT\0") + ready()),
    ) == ["commit", "committed"]


def test_a_writing_statement_outside_a_transaction_is_a_commit() -> None:
    parse = message(b"P", b"s_1\0WITH n AS (SELECT 1) INSERT INTO t SELECT 1\0\0\0")
    bind = message(b"B", b"\0s_1\0\0\0\0\0\0\0") + message(b"E", b"\0\0\0\0\0") + message(b"S", b"")

    assert talk(
        ("client", parse + message(b"S", b"")),
        ("server", message(b"1", b"") + ready()),
        ("client", bind),
        ("server", message(b"2", b"") + message(b"C", b"INSERT 0 1\0") + ready()),
        ("client", message(b"P", b"s_2\0SELECT 1\0\0\0")),
        ("client", message(b"B", b"\0s_2\0\0\0\0\0\0\0")),
        ("server", ready()),
    ) == ["commit", "committed"]


def test_a_commit_that_was_refused_is_not_committed() -> None:
    assert talk(
        ("client", query("BEGIN")),
        ("server", ready(b"T")),
        ("client", query("COMMIT")),
        ("server", message(b"E", b"SERROR\0C40001\0Mno\0\0") + ready()),
    ) == ["commit"]


def test_a_record_says_only_what_was_seen() -> None:
    from tests.faults.records import line  # noqa: PLC0415 - what it is about

    (_, (record,)) = AmqpReader().from_client(frames((commands.Basic.Ack(7, multiple=False), 1)))[0]

    assert json.loads(line(record)) == {"kind": "ack", "channel": 1, "tag": 7}

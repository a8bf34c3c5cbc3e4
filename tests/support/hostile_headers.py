"""Properties that RabbitMQ accepts and delivers, and that client libraries stumble over."""

from __future__ import annotations

import struct

from tests.support.raw_amqp import FLAG, long, nested, short, table

HEADERS = FLAG["headers"]
TIMESTAMP = FLAG["timestamp"]
NOT_UTF8 = b"\xff\xfe"

HOSTILE: dict[str, tuple[int, bytes]] = {
    "a timestamp of 2^64-1": (TIMESTAMP, b"\xff" * 8),
    "a timestamp of 2^63": (TIMESTAMP, struct.pack(">Q", 2**63)),
    "a timestamp of the year 60000 in milliseconds": (TIMESTAMP, struct.pack(">Q", 1_831_000_000_000_000)),
    "a header that is a time of 2^63": (HEADERS, table((b"when", b"T" + struct.pack(">Q", 2**63)))),
    "tables nested 17 deep": (HEADERS, nested(17)),
    "tables nested 600 deep": (HEADERS, nested(600)),
    "tables nested 3000 deep": (HEADERS, nested(3000)),
    "arrays nested 600 deep": (HEADERS, nested(600, b"A")),
    "arrays nested 10000 deep": (HEADERS, nested(10000, b"A")),
    "a header name that is not UTF-8": (HEADERS, table((NOT_UTF8, b"t\x01"))),
    "a nested name that is not UTF-8": (HEADERS, table((b"a", b"F" + table((NOT_UTF8, b"t\x01"))))),
    "a type that is not UTF-8": (FLAG["message_type"], short(NOT_UTF8)),
    "an id that is not UTF-8": (FLAG["message_id"], short(NOT_UTF8)),
    "a content type that is not UTF-8": (FLAG["content_type"], short(NOT_UTF8)),
    "a long name that is not UTF-8": (HEADERS, table((b"\xff" * 255, b"t\x01"))),
}
"""Each makes pamqp alone raise, or would have to be cut."""

ODD: dict[str, tuple[int, bytes]] = {
    "a text header that is not UTF-8": (HEADERS, table((b"a", b"S" + long(NOT_UTF8)))),
    "a decimal with 255 places": (HEADERS, table((b"a", b"D\xff" + b"\xff" * 4))),
    "bytes and nothing": (HEADERS, table((b"a", b"x" + long(b"\0\xff")), (b"b", b"V"))),
    "an empty name, twice": (HEADERS, table((b"", b"t\x01"), (b"", b"t\x00"))),
    "the smallest integers": (
        HEADERS,
        table((b"a", b"l" + struct.pack(">q", -(2**63))), (b"b", b"I" + struct.pack(">i", -(2**31)))),
    ),
    "tables nested 16 deep": (HEADERS, nested(15)),
    "12000 headers": (HEADERS, table(*((b"%d" % n, b"t\x01") for n in range(12000)))),
}
"""Each has to arrive whole."""

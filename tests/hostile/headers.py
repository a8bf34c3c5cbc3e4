"""Headers: every type of field, sizes, nesting, names, and names that routing gives a meaning to."""

from __future__ import annotations

import struct

from tests.hostile.case import (
    DONE,
    Broker,
    Case,
    End,
    dead,
    headed,
    kept,
    moment,
    named,
    sent,
    text,
    unique,
    whole,
)
from tests.support.raw_amqp import long, nested, short, table

MALFORMED = kept("malformed")
TRUE = b"t\x01"


def valued(name: str, value: bytes, end: End = DONE, refused_by: Broker = Broker.NONE) -> Case:
    return headed(f"a value: {name}", (b"value", value), end=end, refused_by=refused_by)


def double(value: float) -> bytes:
    return b"d" + struct.pack(">d", value)


TYPES = (
    valued("true", b"t\x01"),
    valued("a boolean of 255", b"t\xff"),
    valued("-128", b"b\x80"),
    valued("255 without a sign", b"B\xff"),
    valued("-2^15", b"s\x80\0"),
    valued("2^16-1 without a sign", b"u\xff\xff"),
    valued("-2^31", b"I\x80\0\0\0"),
    valued("2^32-1 without a sign", b"i\xff\xff\xff\xff"),
    valued("-2^63", whole(-(2**63))),
    valued("2^63-1", whole(2**63 - 1)),
    valued("2^64-1 without a sign", b"L" + b"\xff" * 8),
    valued("a short integer in the way of the standard", b"U\x7f\xff", refused_by=Broker.ALL),
    valued("a float", b"f" + struct.pack(">f", 0.1)),
    valued("a float that is NaN", b"f" + struct.pack(">f", float("nan")), refused_by=Broker.ALL),
    valued("an infinite float", b"f" + struct.pack(">f", float("-inf")), refused_by=Broker.ALL),
    valued("a double", double(0.1)),
    valued("a double that is NaN", double(float("nan")), refused_by=Broker.ALL),
    valued("a NaN that signals", b"d\x7f\xf0\0\0\0\0\0\1", refused_by=Broker.ALL),
    valued("an infinite double", double(float("inf")), refused_by=Broker.ALL),
    valued("the largest double", double(1.7976931348623157e308)),
    valued("the smallest double", double(5e-324)),
    valued("minus zero", double(-0.0)),
    valued("a decimal", b"D\x02" + struct.pack(">I", 314)),
    valued("a decimal with 255 places", b"D\xff" + b"\xff" * 4),
    valued("a decimal without places", b"D\0" + b"\xff" * 4),
    valued("an empty text", text("")),
    valued("a text with a NUL", text("a\0b")),
    valued("a text that is not utf-8", text(b"\xff\xfe")),
    valued("a text with a surrogate", text(b"\xed\xa0\x80")),
    valued("a text of escape sequences", text("\x1b[2J\x1b]0;title\x07\r\n")),
    valued("a text from right to left", text("\u202e\u2066abc")),
    valued("bytes", b"x" + long(bytes(range(256)))),
    valued("no bytes", b"x" + long(b"")),
    valued("nothing", b"V"),
    valued("nothing, by another type", b"\0", refused_by=Broker.ALL),
    valued("a time of 1970", b"T" + moment(0)),
    valued("a time of 2^32", b"T" + moment(2**32)),
    valued("the last second of the calendar", b"T" + moment(253_402_300_799)),
    valued("a time in microseconds", b"T" + moment(1_700_000_000_000_000), MALFORMED),
    valued("a time of 2^63-1", b"T" + moment(2**63 - 1), MALFORMED),
    valued("a time of 2^63", b"T" + moment(2**63), MALFORMED),
    valued("a time of 2^64-1", b"T" + b"\xff" * 8, MALFORMED),
    valued("an empty table", b"F" + table()),
    valued("an empty list", b"A" + long(b"")),
    valued(
        "a list of all kinds",
        b"A" + long(b"t\x01b\x01V" + whole(1) + text("a") + b"F" + table() + b"A" + long(b"")),
    ),
    valued("a time in a list that is none", b"A" + long(b"T" + moment(2**63)), MALFORMED),
    *(
        valued(f"of the unknown type {kind!r}", bytes((kind,)) + b"\0\0\0\0", MALFORMED, Broker.ALL)
        for kind in (0x0A, ord(" "), ord("N"), ord("X"), ord("Z"), ord("?"), 0x7F, 0x80, 0xFF)
    ),
    valued("of an unknown type in a table", b"F" + table((b"a", b"Q1234")), MALFORMED, refused_by=Broker.ALL),
    valued("of an unknown type in a list", b"A" + long(b"Q1234"), MALFORMED, refused_by=Broker.ALL),
)
NESTING = (
    *(
        named(f"tables {depth} deep", end, headers=nested(depth))
        for depth, end in [
            (7, DONE),
            (8, DONE),
            (9, DONE),
            (15, DONE),
            (16, MALFORMED),
            (17, MALFORMED),
            (600, MALFORMED),
            (3000, MALFORMED),
        ]
    ),
    *(
        named(f"lists {depth} deep", end, headers=nested(depth, b"A"))
        for depth, end in [(8, DONE), (15, DONE), (16, MALFORMED), (600, MALFORMED), (10_000, MALFORMED)]
    ),
    headed(
        "x-death 600 deep",
        (b"x-death", nested(600, b"A")[4:].split(b"deep", 1)[1]),
        end=MALFORMED,
    ),
    headed(
        "a list longer than the table around it",
        (b"a", b"A" + struct.pack(">I", 2**31) + TRUE),
        end=MALFORMED,
        refused_by=Broker.ALL,
    ),
    headed(
        "a table longer than the table around it",
        (b"a", b"F" + struct.pack(">I", 2**32 - 1)),
        end=MALFORMED,
        refused_by=Broker.ALL,
    ),
    headed(
        "a text longer than the table around it",
        (b"a", b"S" + struct.pack(">I", 2**32 - 1) + b"abc"),
        end=MALFORMED,
        refused_by=Broker.ALL,
    ),
    headed(
        "bytes longer than the table around them",
        (b"a", b"x" + struct.pack(">I", 4) + b"abc"),
        end=MALFORMED,
        refused_by=Broker.ALL,
    ),
    headed("a table with half a field", (b"a", b"F" + long(b"\x01b")), end=MALFORMED, refused_by=Broker.ALL),
    headed("a table with half a key", (b"a", b"F" + long(b"\x09b")), end=MALFORMED, refused_by=Broker.ALL),
    headed("a list with half a value", (b"a", b"A" + long(b"I\0\0")), end=MALFORMED, refused_by=Broker.ALL),
)
SIZES = (
    headed("a text of 60 kB", (b"a", text("a" * 60_000))),
    headed("a text of 64 kB", (b"a", text("a" * 65_536)), end=dead("oversize")),
    headed("a text of 125 kB", (b"a", text("a" * 125_000)), end=dead("oversize")),
    headed("bytes of 125 kB", (b"a", b"x" + long(b"\0" * 125_000)), end=dead("oversize")),
    headed("a text that fills a frame and more", (b"a", text("a" * 131_072)), refused_by=Broker.ALL),
    headed("100 headers", *((b"h%d" % n, whole(n)) for n in range(100))),
    headed("2000 headers", *((b"h%d" % n, TRUE) for n in range(2000))),
    headed("12000 headers", *((b"%d" % n, TRUE) for n in range(12_000)), end=dead("oversize")),
    headed("20000 headers of one name", *((b"a", TRUE) for n in range(20_000))),
    headed("60000 headers without a name or a value", *((b"", b"V") for n in range(60_000))),
    headed("100000 headers", *((b"", b"V") for n in range(100_000)), refused_by=Broker.ALL),
    headed("a list of 100000 values", (b"a", b"A" + long(b"V" * 100_000))),
    headed("a list of 20000 empty tables", (b"a", b"A" + long((b"F" + table()) * 20_000))),
    headed("a text of 120 kB that nobody may send on", (b"x-large", text("a" * 120_000))),
    headed("a table of 120 kB", (b"a", b"F" + table((b"b", text("a" * 120_000))))),
)
NAMES = (
    headed("a header without a name", (b"", TRUE)),
    headed("headers without a name, twice", (b"", TRUE), (b"", b"t\0")),
    headed("a name twice", (b"a", TRUE), (b"a", text("other"))),
    headed("a name of 255 bytes", (b"n" * 255, TRUE)),
    headed("a name of 252 bytes in 63 characters", ("😀".encode() * 63, TRUE)),
    headed("a name with a NUL", (b"a\0b", TRUE)),
    headed("a name of escape sequences", (b"\x1b[2J\n", TRUE)),
    headed("a name from right to left", ("\u202eabc".encode(), TRUE)),
    headed("a name that is not utf-8", (b"\xff\xfe", TRUE), end=MALFORMED),
    headed("a name of 255 bytes that are not utf-8", (b"\xff" * 255, TRUE), end=MALFORMED),
    headed("a name with a surrogate", (b"\xed\xa0\x80", TRUE), end=MALFORMED),
    headed("two names that differ by what is no utf-8", (b"\xfe", TRUE), (b"\xff", TRUE), end=MALFORMED),
    headed("a name deep inside that is not utf-8", (b"a", b"F" + table((b"\xff", TRUE))), end=MALFORMED),
    headed("names of Python's own", (b"__class__", TRUE), (b"self", TRUE), (b"__dict__", text("x"))),
    headed(
        "names of properties",
        *(
            (name, text("9"))
            for name in (
                b"type",
                b"message_id",
                b"message-id",
                b"delivery_mode",
                b"priority",
                b"user_id",
                b"timestamp",
                b"content_type",
                b"expiration",
                b"reply_to",
            )
        ),
    ),
    headed("a name of SQL", (b"'; DROP TABLE tasks; --", TRUE)),
    headed("a name of a JSON path", (b'$."a"[0]', TRUE), (b"{}", TRUE), (b"time", TRUE)),
    headed(
        "names that stand for kinds in our records",
        (b"bytes", text("!")),
        (b"decimal", text("x")),
        (b"float", text("y")),
    ),
)
ROUTING = (
    headed("CC to where it is going anyway", (b"CC", b"A" + long(text("default")))),
    headed("BCC to where it is going anyway", (b"BCC", b"A" + long(text("default")))),
    headed("cc in small letters", (b"cc", b"A" + long(text("default")))),
    headed("CC of nothing", (b"CC", b"A" + long(b""))),
    headed("CC to a thousand places", (b"CC", b"A" + long(text("default") * 1000))),
    headed("CC that is a text", (b"CC", text("default")), refused_by=Broker.ALL),
    headed("CC of numbers", (b"CC", b"A" + long(whole(1)))),
    headed("BCC that is a table", (b"BCC", b"F" + table()), refused_by=Broker.ALL),
    headed("x-death that is a text", (b"x-death", text("rejected"))),
    headed("x-death of nothing", (b"x-death", b"A" + long(b""))),
    headed("x-death of texts", (b"x-death", b"A" + long(text("a") + text("b")))),
    headed(
        "x-death that is forged",
        (
            b"x-death",
            b"A"
            + long(
                b"F"
                + table(
                    (b"count", whole(2**63 - 1)),
                    (b"reason", text("delivery_limit")),
                    (b"queue", text("bw.q.default")),
                    (b"exchange", text("")),
                    (b"routing-keys", b"A" + long(text("default.poison"))),
                    (b"time", b"T" + moment(0)),
                )
            ),
        ),
    ),
    headed(
        "x-death whose time is none",
        (b"x-death", b"A" + long(b"F" + table((b"time", b"T" + moment(2**63))))),
        end=MALFORMED,
    ),
    headed(
        "x-first-death-*, x-last-death-*",
        (b"x-first-death-reason", text("expired")),
        (b"x-last-death-queue", text("a")),
        (b"x-first-death-exchange", whole(1)),
    ),
    *(
        headed(f"x-delivery-count is {what}", (b"x-delivery-count", value))
        for what, value in {
            "10^9": whole(10**9),
            "-1": whole(-1),
            "a text": text("many"),
            "a list": b"A" + long(b""),
        }.items()
    ),
    headed("x-acquired-count is forged", (b"x-acquired-count", whole(10**9))),
    headed("expiration as a header", (b"expiration", text("1"))),
    headed(
        "x-message-ttl, x-expires, x-delay",
        (b"x-message-ttl", whole(0)),
        (b"x-expires", whole(1)),
        (b"x-delay", whole(2**62)),
    ),
    headed("x-match and x-priority", (b"x-match", text("all")), (b"x-priority", whole(255))),
    headed("x-stream-offset", (b"x-stream-offset", whole(-1)), (b"x-stream-filter-value", text("a"))),
    headed(
        "x-opt-* of AMQP 1.0",
        (b"x-opt-rabbitmq-received-time", b"T" + moment(0)),
        (b"x-opt-delivery-annotations", b"F" + table()),
    ),
    headed(
        "x-basic-header of AMQP 1.0",
        (b"x-amqp-1.0-properties", b"x" + long(b"\0Ss\xc0")),
        (b"x-amqp-1.0-app-properties", b"x" + long(b"\xff")),
    ),
    headed(
        "alternate-exchange, immediate, mandatory",
        (b"alternate-exchange", text("amq.direct")),
        (b"immediate", TRUE),
        (b"mandatory", b"t\0"),
    ),
)

ROUTED_BY_THEMSELVES = frozenset(
    {"CC to where it is going anyway", "BCC to where it is going anyway", "CC to a thousand places"}
)
"""These reach their queue whatever routing key they are published with."""

MANY = (
    Case(
        "13,050 headers of a character each, without an id",
        kept("oversize"),
        *sent(
            message_type=short(b"note"),
            headers=table(*((chr(0x10000 + number).encode(), b"S" + long(b"")) for number in range(13_050))),
        ),
        b'{"case": "13,050 headers of a character each, without an id"}',
    ),
)
CASES = unique((*MANY, *TYPES, *NESTING, *SIZES, *NAMES, *ROUTING))

"""Properties: every one at and beyond its limits, and content headers that are none."""

from __future__ import annotations

import struct
from dataclasses import replace

from tests.hostile.case import (
    DONE,
    EXPIRED,
    Broker,
    Case,
    End,
    crafted,
    dead,
    kept,
    moment,
    named,
    tagged,
    text,
    unique,
)
from tests.support.raw_amqp import FLAG, long, short, table

MALFORMED, BAD = kept("malformed"), dead("malformed")
NOT_UTF8 = b"\xff\xfe\xfd"
GOOD_FLAGS = FLAG["message_type"] | FLAG["message_id"]


def good(name: str) -> bytes:
    """Encode the properties that GOOD_FLAGS announce."""
    return short(name.encode()) + short(b"note")


def raw(
    name: str, flags: int, properties: bytes, end: End = MALFORMED, *, refused_by: Broker = Broker.ALL
) -> Case:
    """Make a content header that no library builds."""
    return Case(name, end, flags, properties, tagged(name), name, refused_by)


def each_short_string() -> list[Case]:
    """Every short string empty, as long as may be, not UTF-8, with a NUL, with what steers a terminal."""
    harmless = {"correlation_id", "reply_to", "app_id"}
    cases = []
    for which in ("content_type", "content_encoding", "correlation_id", "reply_to", "app_id"):
        for what, value in {
            "empty": b"",
            "255 bytes": b"a" * 255,
            "a NUL": b"a\0b",
            "escape sequences": b"\x1b[31m\r\n",
            "emoji": "😀😀".encode(),
            "spaces": b"   ",
        }.items():
            end = DONE if which in harmless or what in {"empty", "spaces"} else BAD
            cases.append(crafted(f"{which}: {what}", end, {which: short(value)}))
        cases.append(crafted(f"{which}: not utf-8", MALFORMED, {which: short(NOT_UTF8)}))
        cases.append(crafted(f"{which}: all of it not utf-8", MALFORMED, {which: short(b"\xff" * 255)}))
    return cases


CONTENT = (
    *(
        named(f"content_type {value or 'empty'}", end, content_type=short(value.encode()))
        for value, end in [
            ("application/json", DONE),
            ("APPLICATION/JSON", DONE),
            (" application/json ; charset=utf-16", DONE),
            ("application/vnd.api+json", DONE),
            ("application/json;" * 10, DONE),
            ("text/json", BAD),
            ("text/plain", BAD),
            ("application/octet-stream", BAD),
            ("application/x-python-serialize", BAD),
            ("application/x-yaml", BAD),
            ("application/json, text/html", BAD),
            ("json", BAD),
            ("*/*", BAD),
            ("+json", BAD),
        ]
    ),
    *(
        named(f"content_encoding {value!r}", end, content_encoding=short(value.encode()))
        for value, end in [
            ("utf-8", DONE),
            ("UTF-8", DONE),
            ("utf8", DONE),
            ("identity", DONE),
            (" utf-8 ", DONE),
            ("gzip", BAD),
            ("deflate", BAD),
            ("br", BAD),
            ("zstd", BAD),
            ("utf-16", BAD),
            ("latin-1", BAD),
            ("binary", BAD),
            ("utf-8, gzip", BAD),
        ]
    ),
)
TIMESTAMPS = tuple(
    named(f"timestamp {what}", end, timestamp=moment(value))
    for what, value, end in [
        ("0", 0, DONE),
        ("2^31-1", 2**31 - 1, DONE),
        ("2^31", 2**31, DONE),
        ("2^32-1", 2**32 - 1, DONE),
        ("2^32", 2**32, DONE),
        ("in milliseconds", 1_700_000_000_000, DONE),
        ("of the year 9999", 253_402_300_799, DONE),
        ("of the year 10000", 253_402_300_800, DONE),
        ("of the year 9999 in milliseconds", 253_402_300_799_000, DONE),
        ("of the year 10000 in milliseconds", 253_402_300_800_000, MALFORMED),
        ("in microseconds", 1_700_000_000_000_000, MALFORMED),
        ("2^63-1", 2**63 - 1, MALFORMED),
        ("2^63", 2**63, MALFORMED),
        ("2^64-1", 2**64 - 1, MALFORMED),
    ]
)
OCTETS = (
    *(named(f"delivery_mode {value}", delivery_mode=bytes((value,))) for value in (1, 2)),
    *(
        named(f"delivery_mode {value}", delivery_mode=bytes((value,)), refused_by=Broker.BEFORE_4)
        for value in (0, 3, 7, 127, 128, 255)
    ),
    *(named(f"priority {value}", priority=bytes((value,))) for value in (0, 4, 9, 10, 31, 32, 127, 128, 255)),
)
EXPIRATIONS = (
    *(
        named(f"expiration {value}", DONE, expiration=short(value.encode()))
        for value in ("60000", "4294967295", "4294967296", "0060000", "+60000")
    ),
    *(
        named(f"expiration {what}", DONE, expiration=short(value), refused_by=Broker.ALL)
        for what, value in {
            "empty": b"",
            "that is no number": b"soon",
            "negative": b"-1",
            "with a fraction": b"60000.5",
            "with an exponent": b"6e4",
            "with a space": b" 60000",
            "with a unit": b"60s",
            "of 10^20": b"1" + b"0" * 20,
            "of 255 digits": b"9" * 255,
            "with a NUL": b"60000\0",
            "not utf-8": b"\xff",
            "in Arabic digits": "٦٠٠٠٠".encode(),
        }.items()
    ),
    named("published long ago, for a minute", EXPIRED, timestamp=moment(1), expiration=short(b"60000")),
    named("published in 2106, for a month", timestamp=moment(2**32 - 1), expiration=short(b"2678400000")),
    # what is beyond 2106 counts as milliseconds: it was 1978
    named(
        "published in 9999, for a month",
        EXPIRED,
        timestamp=moment(253_402_300_799),
        expiration=short(b"2678400000"),
    ),
)
USERS = (
    named("user_id of somebody else", DONE, user_id=short(b"root"), refused_by=Broker.ALL),
    named("user_id empty", DONE, user_id=short(b""), refused_by=Broker.ALL),
    named("user_id not utf-8", DONE, user_id=short(b"\xff"), refused_by=Broker.ALL),
    named("reply_to a work queue's pattern", reply_to=short(b"#")),
    named("reply_to the pseudo-queue", reply_to=short(b"amq.rabbitmq.reply-to"), refused_by=Broker.ALL),
    named("a cluster id", refused_by=Broker.NONE, cluster_id=short(b"cluster")),
    named("a cluster id of 255 bytes that are not utf-8", MALFORMED, cluster_id=short(b"\xff" * 255)),
    named("an app_id of SQL", app_id=short(b"'); DROP TABLE tasks; --")),
)
ALL_AT_ONCE = (
    named(
        "everything as long as may be",
        content_type=short(b"application/json;" + b"a" * 238),
        content_encoding=short(b"utf-8"),
        headers=table((b"h", text("x" * 60_000))),
        delivery_mode=b"\x01",
        priority=b"\xff",
        correlation_id=short(b"c" * 255),
        reply_to=short(b"r" * 255),
        expiration=short(b"4294967295"),
        timestamp=moment(2**32 - 1),
        app_id=short(b"a" * 255),
    ),
    named(
        "everything empty that may be",
        content_type=short(b""),
        content_encoding=short(b""),
        headers=table(),
        correlation_id=short(b""),
        reply_to=short(b""),
        app_id=short(b""),
    ),
    raw("no property at all", 0, b"", refused_by=Broker.NONE),
)
FLAGS = (
    raw("the reserved flag", GOOD_FLAGS | 1 << 1, good("the reserved flag"), DONE, refused_by=Broker.NONE),
    raw(
        "flags to be continued, with nothing more",
        GOOD_FLAGS | 1,
        b"\0\0" + good("flags to be continued, with nothing more"),
        DONE,
    ),
    raw(
        "flags to be continued, with more of them",
        GOOD_FLAGS | 1,
        b"\xff\xfe" + good("flags to be continued, with more of them"),
        DONE,
    ),
    raw(
        "flags to be continued ten times",
        GOOD_FLAGS | 1,
        b"\0\1" * 9 + b"\0\0" + good("flags to be continued ten times"),
        DONE,
    ),
    raw("flags to be continued without an end", GOOD_FLAGS | 1, b"\0\1" * 500),
    raw("every flag and nothing behind", 0xFFFC, b""),
    raw("every bit and nothing behind", 0xFFFF, b""),
    raw("no flags, but properties", 0, good("no flags, but properties")),
    raw("a byte behind the properties", GOOD_FLAGS, good("a byte behind the properties") + b"\0", DONE),
    raw(
        "a thousand bytes behind the properties",
        GOOD_FLAGS,
        good("a thousand bytes behind the properties") + b"\xce" * 1000,
        DONE,
    ),
)
CUT_OFF = (
    raw("a type without a length", FLAG["message_type"], b""),
    raw("a type shorter than its length", FLAG["message_type"], b"\xffnote"),
    raw("an id shorter than its length", GOOD_FLAGS, b"\x09id"),
    raw("headers without a length", FLAG["headers"], b""),
    raw("headers with half a length", FLAG["headers"], b"\0\0"),
    raw("headers shorter than their length", FLAG["headers"], struct.pack(">I", 1000) + b"\x01at\x01"),
    raw("headers of 2^32-1 bytes", FLAG["headers"], b"\xff" * 4),
    raw("headers that end in a key", FLAG["headers"], long(b"\x05ab")),
    raw("headers that end behind a key", FLAG["headers"], long(b"\x01a")),
    raw("headers that end in a value", FLAG["headers"], long(b"\x01aI\0\0")),
    raw(
        "headers whose text goes on behind them",
        FLAG["headers"] | FLAG["message_type"],
        long(b"\x01aS\0\0\0\x05ab") + b"\x04note",
    ),
    raw(
        "headers whose table goes on behind them",
        FLAG["headers"] | FLAG["message_type"],
        long(b"\x01aF\0\0\0\x05ab") + b"\x04note",
    ),
    raw("a timestamp of four bytes", FLAG["timestamp"], b"\0" * 4),
    raw("a timestamp of no bytes", FLAG["timestamp"], b""),
    raw("a priority of no bytes", FLAG["priority"], b""),
    raw("a delivery mode of no bytes", FLAG["delivery_mode"], b""),
    raw("a content type whose length is all there is", FLAG["content_type"], b"\xff"),
)
NO_BODY = (replace(named("no body"), body=b"", end=dead("malformed")),)

CASES = unique(
    (
        *each_short_string(),
        *CONTENT,
        *TIMESTAMPS,
        *OCTETS,
        *EXPIRATIONS,
        *USERS,
        *ALL_AT_ONCE,
        *FLAGS,
        *CUT_OFF,
        *NO_BODY,
    )
)

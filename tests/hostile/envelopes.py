"""Envelopes: ids, task names, attempts, deadlines, unknown versions, and our own headers, forged."""

from __future__ import annotations

import struct
from dataclasses import replace
from uuid import uuid4

from tests.hostile.case import (
    DONE,
    EXISTING,
    EXPIRED,
    Broker,
    Case,
    End,
    dead,
    headed,
    kept,
    moment,
    named,
    sent,
    tagged,
    text,
    unique,
    whole,
)
from tests.support.raw_amqp import long, short, table

MALFORMED, UNKNOWN = kept("malformed"), dead("unknown_task")
LONG_PAST = "1999-01-01T00:00:00+00:00"
PAST, FUTURE = "2001-01-01T00:00:00+00:00", "2999-12-31T23:59:59.999999+00:00"
VOID, TRUE = b"V", b"t\x01"
DOUBLE = b"d" + struct.pack(">d", 1.5)
NAN = b"d" + struct.pack(">d", float("nan"))
ENDLESS = b"d" + struct.pack(">d", float("inf"))
DECIMAL = b"D\x02" + struct.pack(">I", 314)
LIST, EMPTY_TABLE = b"A" + long(whole(1)), b"F" + table()
OCTETS = b"x" + long(b"\0\xff")
NOT_UTF8 = b"S" + long(b"\xff\xfe")


def refused(value: bytes) -> Broker:
    """Say who refuses a header's value: Erlang has no floats that are no numbers."""
    return Broker.ALL if value in (NAN, ENDLESS) else Broker.NONE


def identified(name: str, task_id: bytes, end: End = DONE, *, stored: str | None = None) -> Case:
    """Make a message whose id is `task_id`, which its row shows as it is, or as `stored`."""
    case = named(name, end, message_id=short(task_id))
    return replace(case, task_id=stored if stored is not None else task_id.decode(errors="replace"))


def unidentified(name: str, *headers: tuple[bytes, bytes], end: End = DONE) -> Case:
    """Make a message without the property for an id."""
    properties = {"headers": table(*headers)} if headers else {}
    return Case(name, end, *sent(message_type=short(b"note"), **properties), tagged(name), None)


def called(name: str, task: bytes, end: End = UNKNOWN) -> Case:
    return named(name, end, message_type=short(task))


def uncalled(name: str, *headers: tuple[bytes, bytes], end: End = MALFORMED) -> Case:
    """Make a message without the property for a task's name."""
    flags, properties = sent(message_id=short(name.encode()), headers=table(*headers))
    return Case(name, end, flags, properties, tagged(name), name)


def by_header(name: str, header: bytes, value: bytes, end: End = DONE, *, task_id: str | None = None) -> Case:
    return replace(unidentified(name, (header, value), end=end), task_id=task_id)


IDS = (
    identified("an id of one letter", b"a"),
    identified("an id of 200 characters", b"i" * 200),
    identified("an id of 201 characters", b"j" * 201, MALFORMED),
    identified("an id of 255 bytes", b"k" * 255, MALFORMED),
    identified("an id of 63 characters in 252 bytes", "😀".encode() * 63),
    identified("an id with a NUL", b"a\0b", MALFORMED),
    identified("an id that is a NUL", b"\0", MALFORMED),
    identified("an id with a newline", b"a\nlevel=error forged"),
    identified("an id with escape sequences", b"\x1b[31m\x1b]0;title\x07"),
    identified("an id of spaces", b"   "),
    identified("an id from right to left", "\u202etxt.exe".encode()),
    identified("an id that climbs", b"../../../etc/passwd"),
    identified("an id of SQL", b"'; DROP TABLE tasks; --"),
    identified("an id of HTML", b'"><img src=x onerror=alert(1)>'),
    identified("an id of wildcards", b"%_*?[a-z]#.*"),
    identified("an id of placeholders", b":id $1 %s {0} %(id)s"),
    identified("an id with a byte order mark", b"\xef\xbb\xbfid"),
    identified("an id decomposed", "e\u0301".encode()),
    identified("an id composed", "\u00e9".encode()),
    identified("an id that is not utf-8", b"\xff\xfe", MALFORMED),
    identified("an id with a surrogate", b"\xed\xa0\x80", MALFORMED),
    identified("an id cut off in a character", "€".encode()[:2], MALFORMED),
    identified("an id that is null", b"null"),
    identified("an id with a tab behind", b"tab\t"),
    named("an id that is taken", kept("conflict"), message_id=short(EXISTING.encode())),
    replace(unidentified("no id"), task_id=None),
    replace(named("an empty id", message_id=short(b"")), task_id=None),
    by_header("an id in a header", b"task-id", text("header-id-1"), task_id="header-id-1"),
    by_header(
        "an id in a header, 200 characters in 800 bytes", b"task-id", text("😀" * 200), task_id="😀" * 200
    ),
    by_header("an id in a header, 201 characters", b"task-id", text("h" * 201), MALFORMED),
    by_header("an id in a header, 60 kB", b"task-id", text("h" * 60_000), MALFORMED),
    by_header("an id in a header, a NUL", b"task-id", text("a\0"), MALFORMED),
    by_header("an id in a header, empty", b"task-id", text("")),
    by_header("an id in a header, not utf-8", b"task-id", NOT_UTF8, MALFORMED),
    by_header("an id in a header, an integer", b"task-id", whole(7), MALFORMED),
    by_header("an id in a header, true", b"task-id", TRUE, MALFORMED),
    by_header("an id in a header, a fraction", b"task-id", DOUBLE, MALFORMED),
    by_header("an id in a header, nothing", b"task-id", VOID),
    by_header("an id in a header, a table", b"task-id", b"F" + table((b"a", TRUE)), MALFORMED),
    by_header("an id in a header, a list", b"task-id", LIST, MALFORMED),
    by_header("an id in a header, bytes", b"task-id", OCTETS, MALFORMED),
    by_header("an id in a header, a time", b"task-id", b"T" + moment(1), MALFORMED),
    replace(
        headed("an id in both places", (b"task-id", text("not this one"))), task_id="an id in both places"
    ),
)
NAMES = (
    called("a task nobody knows", b"no.such.task"),
    called("a task that climbs", b"../../note"),
    called("a task of Python's own", b"__class__"),
    called("a task that is a function", b"os.system"),
    called("a task in capitals", b"NOTE"),
    called("a task with a space behind", b"note "),
    called("a task with a newline", b"note\n{}"),
    called("a task of emoji", "🚀".encode()),
    called("a task from right to left", "\u202eeton".encode()),
    called("a task of escape sequences", b"\x1b[2J"),
    called("a task of SQL", b"note'; DELETE FROM tasks; --"),
    called("a task of labels", b'note",queue="other'),
    called("a task of 200 characters", b"n" * 200),
    called("a task of dots and wildcards", b"#.*.#"),
    called("a task of 201 characters", b"n" * 201, MALFORMED),
    called("a task with a NUL", b"note\0", MALFORMED),
    called("a task that is not utf-8", b"\xff", MALFORMED),
    uncalled("no task at all"),
    replace(named("an empty task", MALFORMED, message_type=short(b"")), task_id="an empty task"),
    uncalled("a task in a header", (b"task-type", text("note")), end=DONE),
    uncalled("a task in a header, nobody knows it", (b"task-type", text("unheard")), end=UNKNOWN),
    uncalled("a task in a header, 60 kB", (b"task-type", text("n" * 60_000))),
    uncalled(
        "a task in a header, 200 characters in 800 bytes", (b"task-type", text("😀" * 200)), end=UNKNOWN
    ),
    uncalled("a task in a header, a NUL", (b"task-type", text("note\0"))),
    uncalled("a task in a header, an integer", (b"task-type", whole(1))),
    uncalled("a task in a header, nothing", (b"task-type", VOID)),
    uncalled("a task in a header, a list", (b"task-type", LIST)),
    uncalled("a task in a header, bytes", (b"task-type", b"x" + long(b"note"))),
    uncalled("a task in a header, not utf-8", (b"task-type", NOT_UTF8)),
)
FORGED = (
    *(
        headed(f"{header} is {what}", (header.encode(), value), refused_by=refused(value))
        for header in ("bw-epoch", "bw-attempt")
        for what, value in {
            "-10^9": whole(-(10**9)),
            "2^31": whole(2**31),
            "2^63-1": whole(2**63 - 1),
            "1e99": b"d" + struct.pack(">d", 1e99),
            "NaN": NAN,
            "true": TRUE,
            "bytes": OCTETS,
            "a text": text("99"),
            "a table": EMPTY_TABLE,
            "a list": LIST,
            "nothing": VOID,
            "a time of 1970": b"T" + moment(0),
        }.items()
    ),
    by_header("bw-task-id is an id", b"bw-task-id", text("forged-1"), task_id="forged-1"),
    by_header("bw-task-id is empty", b"bw-task-id", text("")),
    by_header("bw-task-id is 201 characters", b"bw-task-id", text("f" * 201), MALFORMED),
    by_header("bw-task-id is an integer", b"bw-task-id", whole(5), MALFORMED),
    by_header("bw-task-id is a list", b"bw-task-id", LIST, MALFORMED),
    by_header("bw-task-id is taken", b"bw-task-id", text(EXISTING), kept("conflict")),
    headed("bw-reason is ours", (b"bw-reason", text("gave_up"))),
    headed("bw-reason is none of ours", (b"bw-reason", text("because"))),
    headed("bw-error-message is 60 kB", (b"bw-error-message", text("e" * 60_000))),
    headed("bw-dead-letter-id is an id", (b"bw-dead-letter-id", text(str(uuid4())))),
    headed("bw-dead-letter-id is none", (b"bw-dead-letter-id", text("{not an id}"))),
    headed(
        "bw-worker, bw-failed-at, bw-fingerprint",
        (b"bw-worker", VOID),
        (b"bw-failed-at", TRUE),
        (b"bw-fingerprint", LIST),
    ),
    headed("a header of ours that there is not", (b"bw-version", whole(99)), (b"bw-", TRUE)),
    headed("our headers in capitals", (b"BW-EPOCH", whole(9)), (b"Bw-Task-Id", text("other"))),
)
TIMES = (
    *(
        headed(f"not-after is {what}", (b"not-after", value), end=end, refused_by=refused(value))
        for what, value, end in [
            ("long ago", text(PAST), EXPIRED),
            ("far away", text(FUTURE), DONE),
            ("a time of AMQP, long ago", b"T" + moment(1), EXPIRED),
            ("a time of AMQP, in 2106", b"T" + moment(2**32 - 1), DONE),
            ("a time of AMQP, in 9999, which counts as milliseconds", b"T" + moment(253402300799), EXPIRED),
            ("seconds", whole(1), EXPIRED),
            ("seconds of 9999", whole(253402300799), DONE),
            ("seconds as text", text("1.5"), EXPIRED),
            ("a fraction", DOUBLE, EXPIRED),
            ("a decimal", DECIMAL, EXPIRED),
            ("without a zone", text("2001-01-01T00:00:00"), EXPIRED),
            ("a date", text("2001-01-01"), EXPIRED),
            ("a week", text("2001-W01-1"), EXPIRED),
            ("negative seconds", whole(-1), EXPIRED),
            ("nothing", VOID, DONE),
            ("2^63-1 seconds", whole(2**63 - 1), dead("malformed")),
            ("-2^63 seconds", whole(-(2**63)), dead("malformed")),
            ("the end of the calendar, in the west", text("9999-12-31T23:59:59-14:00"), dead("malformed")),
            ("the year 10000", text("10000-01-01T00:00:00Z"), dead("malformed")),
            ("the year 0", text("0000-01-01T00:00:00Z"), dead("malformed")),
            ("NaN", NAN, dead("malformed")),
            ("infinite", ENDLESS, dead("malformed")),
            ("true", TRUE, dead("malformed")),
            ("a text", text("tomorrow"), dead("malformed")),
            ("empty", text(""), dead("malformed")),
            ("a text of 60 kB", text("9" * 60_000), dead("malformed")),
            ("in Arabic digits", text("١٢٣"), dead("malformed")),
            ("with a NUL", text("2001-01-01\0"), dead("malformed")),
            ("a table", EMPTY_TABLE, dead("malformed")),
            ("a list", LIST, dead("malformed")),
            ("bytes", OCTETS, dead("malformed")),
        ]
    ),
    *(
        headed(f"deliver-at is {what}", (b"deliver-at", value), end=end, refused_by=refused(value))
        for what, value, end in [
            ("long ago", text(PAST), DONE),
            ("far away", text(FUTURE), End("queued")),
            ("a time of AMQP, in 2106", b"T" + moment(2**32 - 1), End("queued")),
            ("a text", text("soon"), dead("malformed")),
            ("infinite", ENDLESS, dead("malformed")),
            ("2^63-1 seconds", whole(2**63 - 1), dead("malformed")),
            ("a list", LIST, dead("malformed")),
            ("nothing", VOID, DONE),
        ]
    ),
    headed(
        "not-after long ago, deliver-at far away",
        (b"not-after", text(PAST)),
        (b"deliver-at", text(FUTURE)),
        end=EXPIRED,
    ),
    headed("both times wrong", (b"not-after", text("a")), (b"deliver-at", text("b")), end=dead("malformed")),
    # which of the two the broker sends on is its choice, and another in 4.0 than in 3.10
    headed("not-after twice", (b"not-after", text(PAST)), (b"not-after", text(LONG_PAST)), end=EXPIRED),
)
VERSIONS = (
    *(
        headed(f"schema-version is {what}", (b"schema-version", value), refused_by=refused(value))
        for what, value in {
            "2^63-1": whole(2**63 - 1),
            "a text": text("v999.0.0-beta+\u0000"),
            "a list": LIST,
            "NaN": NAN,
        }.items()
    ),
    *(
        headed(f"traceparent is {what}", (b"traceparent", value))
        for what, value in {
            "of an unknown version": text("ff-" + "0" * 32 + "-" + "0" * 16 + "-00-more"),
            "too short": text("00-1-1-1"),
            "60 kB": text("00-" + "a" * 60_000),
            "a list": LIST,
            "with a newline": text("00-" + "a" * 32 + "-" + "b" * 16 + "-01\nlevel=error"),
            "an integer": whole(0),
        }.items()
    ),
    headed("tenant-id is a NUL", (b"tenant-id", text("\0"))),
    headed("partition-key is a table", (b"partition-key", EMPTY_TABLE)),
    headed("tracestate is bytes", (b"tracestate", OCTETS)),
)

CASES = unique((*IDS, *NAMES, *FORGED, *TIMES, *VERSIONS))

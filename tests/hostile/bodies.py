"""Bodies: encodings, truncation, depth, size, numbers, other formats, text that Postgres refuses."""

from __future__ import annotations

import gzip
import json
import pickle
import zlib

from tests.hostile.case import DONE, LIMIT, Case, End, dead, sent, unique
from tests.support.raw_amqp import short

MALFORMED, INVALID = dead("malformed"), dead("invalid_payload")
GOOD = '{"x": 1, "ä": "€😀"}'


def body(name: str, content: bytes | str, end: End = MALFORMED, *, task: str = "typed") -> Case:
    flags, properties = sent(message_type=short(task.encode()), message_id=short(name.encode()))
    return Case(name, end, flags, properties, content.encode() if isinstance(content, str) else content, name)


def padded(size: int) -> bytes:
    return b'{"x": 1}' + b" " * (size - 8)


ENCODINGS = (
    body("utf-8 with a byte order mark", GOOD.encode("utf-8-sig")),
    body("utf-16 with a byte order mark", GOOD.encode("utf-16")),
    body("utf-16, big end first", GOOD.encode("utf-16-be")),
    body("utf-16, little end first", GOOD.encode("utf-16-le")),
    body("utf-32 with a byte order mark", GOOD.encode("utf-32")),
    body("utf-32, big end first", GOOD.encode("utf-32-be")),
    body("utf-7", '{"x": 1, "ä": 2}'.encode("utf-7") + b"+"),
    body("latin-1", '{"x": 1, "n": "é"}'.encode("latin-1")),
    body("windows-1252", '{"x": 1, "n": "€"}'.encode("cp1252")),
    body("ebcdic", b'{"x": 1}'.decode().encode("cp037")),
    body("shift-jis", '{"x": 1, "n": "表示"}'.encode("shift-jis")),
    body("a byte order mark and nothing else", b"\xef\xbb\xbf"),
    body("two continuation bytes", b'{"x": 1, "n": "\x80\xbf"}'),
    body("a byte that utf-8 never has", b'{"x": 1, "n": "\xff"}'),
    body("an overlong slash", b'{"x": 1, "n": "\xc0\xaf"}'),
    body("an overlong NUL", b'{"x": 1, "n": "\xc0\x80"}'),
    body("a surrogate in utf-8", b'{"x": 1, "n": "\xed\xa0\x80"}'),
    body("a pair of surrogates in utf-8", b'{"x": 1, "n": "\xed\xa0\xbd\xed\xb8\x80"}'),
    body("beyond the last character", b'{"x": 1, "n": "\xf4\x90\x80\x80"}'),
    body("five bytes for one character", b'{"x": 1, "n": "\xf8\x88\x80\x80\x80"}'),
    body("a key that is not utf-8", b'{"x": 1, "\xfe": 1}'),
    body("noncharacters", '{"x": 1, "n": "\ufffe\uffff\U0010ffff"}', DONE),
    body("only whitespace around", " \t\r\n" + GOOD + " \t\r\n", DONE),
    body("a no-break space in front", "\u00a0" + GOOD),
    body("a form feed in front", "\f" + GOOD),
)
TRUNCATED = (
    body("nothing", b""),
    body("nothing, where nothing is asked", b" ", DONE, task="loose"),
    body("white space", b" \n\t \r "),
    body("one NUL", b"\0"),
    body("NULs", b"\0" * 100),
    *(
        body(f"cut off {where}", cut)
        for where, cut in {
            "after the brace": "{",
            "in a key": '{"x',
            "after a key": '{"x"',
            "after the colon": '{"x":',
            "in a number": '{"x": 1',
            "after a minus": '{"x": -',
            "after an exponent": '{"x": 1e',
            "after a decimal point": '{"x": 1.',
            "after a comma": '{"x": 1,',
            "in a literal": '{"x": tru',
            "in a text": '{"x": 1, "n": "abc',
            "after a backslash": '{"x": 1, "n": "abc\\',
            "in an escape": '{"x": 1, "n": "\\u00',
            "between two surrogates": '{"x": 1, "n": "\\ud83d',
            "in an array": '{"x": [1, 2',
            "before the last brace": '{"x": 1, "n": {}',
        }.items()
    ),
    body("cut off in a character", '{"x": 1, "n": "€"}'.encode()[:-4]),
    body("a byte behind the end", b'{"x": 2}}'),
    body("a NUL behind the end", b'{"x": 2}\0'),
    body("two documents", b'{"x": 2}{"x": 3}'),
    body("a document a line", b'{"x": 2}\n{"x": 3}\n'),
)
DEPTH = (
    body("arrays 100 deep", b'{"x": 1, "n": ' + b"[" * 100 + b"]" * 100 + b"}", DONE),
    body("arrays 1000 deep", b'{"x": 1, "n": ' + b"[" * 1000 + b"]" * 1000 + b"}"),
    body("arrays 5000 deep", b"[" * 5000 + b"]" * 5000),
    body("arrays 5000 deep, where nothing is asked", b"[" * 5000 + b"]" * 5000 + b" ", task="loose"),
    body("arrays 10000 deep, never closed", b"[" * 10_000),
    body("objects 1000 deep", b'{"a":' * 1000 + b"1" + b"}" * 1000),
    body(
        "objects 1700 deep in a member that nobody asks for",
        b'{"x":1,"n":' + b'{"":' * 1700 + b"1" + b"}" * 1701,
    ),
    body("brackets that close only", b"]" * 5000),
    body("arrays and objects in turns", b'[{"a":' * 1000 + b"1" + b"}]" * 1000),
    body("many small things", b'{"x": 1, "n": [' + b",".join([b"{}"] * 3000) + b"]}", DONE),
    body("thousands of keys", json.dumps({"x": 1, **{f"k{n}": n for n in range(700)}}), DONE),
)
SIZE = (
    body("as large as may be", padded(LIMIT), DONE),
    body("one byte too large", padded(LIMIT + 1), dead("oversize")),
    body("ten times too large", padded(LIMIT * 10), dead("oversize")),
    body("larger than a frame", padded(200_000), dead("oversize")),
    body("a mebibyte", padded(2**20), dead("oversize")),
    body("too large and no JSON", b"\xff" * (LIMIT + 1), dead("oversize")),
    body("too large and nothing but NULs", b"\0" * (LIMIT * 2), dead("oversize")),
    body("a text that fills it", b'{"x": 1, "n": "' + b"x" * (LIMIT - 17) + b'"}', DONE),
)
NUMBERS = (
    *(
        body(f"the number {shown}", '{"x": ' + number + "}", end)
        for shown, number, end in [
            ("NaN", "NaN", MALFORMED),
            ("Infinity", "Infinity", MALFORMED),
            ("-Infinity", "-Infinity", MALFORMED),
            ("nan in small letters", "nan", MALFORMED),
            ("with a plus", "+1", MALFORMED),
            ("with a zero in front", "01", MALFORMED),
            ("minus zero", "-0", DONE),
            ("hexadecimal", "0x10", MALFORMED),
            ("octal", "0o7", MALFORMED),
            ("binary", "0b1", MALFORMED),
            ("with underscores", "1_000", MALFORMED),
            ("with a thousands separator", "1,000", MALFORMED),
            ("a point in front", ".5", MALFORMED),
            ("a point behind", "5.", MALFORMED),
            ("an exponent alone", "e5", MALFORMED),
            ("2^63", str(2**63), DONE),
            ("2^64", str(2**64), DONE),
            ("of 4000 digits", "9" * 4000, DONE),
            ("of 4301 digits", "9" * 4301, MALFORMED),
            ("of 9000 digits", "-" + "1" * 9000, MALFORMED),
            ("a whole one with a point", "3.0", DONE),
            ("a fraction", "1.5", INVALID),
            ("1e3", "1e3", DONE),
            ("1e999", "1e999", INVALID),
            ("-1e999", "-1e999", INVALID),
            ("1e-999", "1e-999", DONE),
            ("an exponent of 5000 digits", "1e" + "9" * 5000, INVALID),
            ("5000 digits behind the point", "0." + "3" * 5000, INVALID),
            ("in full width", "\uff11", MALFORMED),
            ("as a text", '"12"', DONE),
            ("as a text with spaces", '" 12 "', DONE),
            ("as a text of 5000 digits", '"' + "8" * 5000 + '"', INVALID),
            ("as a text that is none", '"twelve"', INVALID),
            ("null", "null", INVALID),
            ("true", "true", DONE),
            ("in an array", "[7]", INVALID),
            ("in an object", '{"x": 7}', INVALID),
        ]
    ),
    body("a float of 1e999", '{"x": 1e999 }', dead("result_unserialisable"), task="number"),
    body("a float of -0", '{"x": -0.0 }', DONE, task="number"),
    body("the smallest float", '{"x": 5e-324}', DONE, task="number"),
    body("huge numbers that nobody asks for", '{"x": 1, "n": 1e999, "m": -1e999}', DONE),
    body("NaN that nobody asks for", '{"x": 1, "n": NaN}'),
    body("the word NaN in a text", '{"x": 1, "n": "NaN -Infinity"}', DONE),
)
SHAPES = (
    body("a key twice", '{"x": "no number", "x": 5}', DONE),
    body("a key twice, the last one wrong", '{"x": 5, "x": "no number"}', INVALID),
    body("a key twice, once escaped", '{"\\u0078": "no number", "x": 6}', DONE),
    body("an array", "[1]", INVALID),
    body("a text", '"x"', INVALID),
    body("a number", "1", INVALID),
    body("null", "null", INVALID),
    body("an empty object", "{}", INVALID),
    body("a key in capitals", '{"X": 1}', INVALID),
    body("a key with a NUL behind", '{"x\\u0000": 1}', INVALID),
    body("names of Python's own", '{"x": 1, "__class__": "os.system", "__init__": {}, "self": 1}', DONE),
    body("names of JavaScript's own", '{"x": 1, "__proto__": {"y": 1}, "constructor": null}', DONE),
    body("an empty key", '{"x": 1, "": 2}', DONE),
)
SYNTAX = (
    *(
        body(f"JSON with {what}", content)
        for what, content in {
            "a comment": '{"x": 1} // one',
            "a block comment": '{"x": /* one */ 1}',
            "a hash": '# a hash\n{"x": 1}',
            "a comma behind": '{"x": 1,}',
            "a comma behind an element": '{"x": [1,]}',
            "a comma missing": '{"x": 1 "y": 2}',
            "a colon missing": '{"x" 1}',
            "single quotes": "{'x': 1}",
            "a bare key": "{x: 1}",
            "a number for a key": "{1: 1}",
            "Python's literals": '{"x": 1, "n": None, "m": True}',
            "undefined": '{"x": undefined}',
            "an escape that there is not": '{"x": 1, "n": "\\x41"}',
            "an escape of three digits": '{"x": 1, "n": "\\u12z4"}',
            "a raw newline in a text": '{"x": 1, "n": "a\nb"}',
            "a raw NUL in a text": '{"x": 1, "n": "a\0b"}',
            "a raw tab in a key": '{"x": 1, "a\tb": 1}',
            "a lone leading surrogate": '{"x": 1, "n": "\\ud800"}',
            "a lone trailing surrogate": '{"x": 1, "n": "\\udc00"}',
            "surrogates the wrong way round": '{"x": 1, "n": "\\udc00\\ud800"}',
            "a surrogate in a key": '{"x": 1, "\\udfff": 1}',
            "a callback around": 'callback({"x": 1})',
            "a guard in front": ")]}',\n" + '{"x": 1}',
        }.items()
    ),
)
FORMATS = (
    body("a pickle", pickle.dumps({"x": 1})),
    body("a pickle that runs a program", b"cos\nsystem\n(S'exit 1'\ntR."),
    body("gzip", gzip.compress(GOOD.encode(), mtime=0)),
    body("zlib that grows a thousandfold", zlib.compress(b" " * 5_000_000)),
    body("messagepack", b"\x81\xa1x\x01"),
    body("cbor", b"\xa1\x61x\x01"),
    body("bson", b"\x0c\x00\x00\x00\x10x\x00\x01\x00\x00\x00\x00"),
    body("protobuf", b"\x08\x01\x12\x03abc"),
    body("xml with entities", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
    body("yaml with an object of Python's", "!!python/object/apply:os.system ['exit 1']"),
    body("a form", "x=1&y=2"),
    body("csv", "x\n1\n"),
    body("html", "<script>alert(1)</script>"),
    body("base64 of JSON", "eyJ4IjogMX0="),
    body("a shell's command", "$(exit 1); `exit 1` | exit"),
    body("a look-up of Log4j", "${jndi:ldap://127.0.0.1/a}"),
    body("a template", "{{7*7}}${7*7}<%= 7*7 %>"),
    body("escape sequences of a terminal", "\x1b[2J\x1b]0;title\x07\x1b[31m"),
    body("a frame of AMQP", b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x28\xce"),
    body("the end of a frame", b"\xce" * 100),
    body("every byte that there is", bytes(range(256))),
)
POSTGRES = (
    body("a text with a NUL comes back", '{"text": "a\\u0000b"}', dead("result_unserialisable"), task="echo"),
    body("a text with an escaped escape comes back", '{"text": "a\\\\u0000b"}', DONE, task="echo"),
    body("emoji come back", '{"text": "😀\\ud83d\\ude00"}', DONE, task="echo"),
    body("controls come back", '{"text": "\\u0001\\u001f\\u007f\\u0085\\u2028"}', DONE, task="echo"),
    body("writing from right to left comes back", '{"text": "\\u202eabc\\u202c"}', DONE, task="echo"),
    body("SQL comes back", '{"text": "\'); DROP TABLE tasks; --"}', DONE, task="echo"),
    body("placeholders come back", '{"text": "%s $1 :id {x} %(x)s"}', DONE, task="echo"),
    body("a NUL that nobody asks for", '{"x": 1, "n": "\\u0000"}', DONE),
    body("a NUL where nothing is asked", '"\\u0000"', DONE, task="loose"),
)

CASES = unique((*ENCODINGS, *TRUNCATED, *DEPTH, *SIZE, *NUMBERS, *SHAPES, *SYNTAX, *FORMATS, *POSTGRES))

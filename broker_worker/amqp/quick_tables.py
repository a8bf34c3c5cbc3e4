"""Header tables as nearly all messages have them, read in one go: a retry brings the broker's `x-death`.

What is unusual raises, and `safe_decoding` reads it, which takes several times as long and is never wrong.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime

MAX_DEPTH = 8  # far less than what `safe_decoding` takes
MAX_SECONDS = 0xFFFFFFFF
LENGTH = struct.Struct(">I")
SECONDS = struct.Struct(">Q")
TEXT, TABLE, ARRAY, BOOLEAN, NOTHING, MOMENT = b"SFAtVT"
KINDS = {"b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q", "d": "d"}
NUMBERS = {ord(kind): struct.Struct(f">{code}") for kind, code in KINDS.items()}


def read_quickly(data: bytes, at: int) -> tuple[int, dict[str, object]]:
    """Read the table at `at`; where it ends, and what is in it.

    Raises:
        LookupError, ValueError, OverflowError, OSError, struct.error: it is not as it should be, or unusual.
    """
    end = _end(data, at, len(data))
    return end, _table(data, at + LENGTH.size, end, depth=0)


def read_moment(data: bytes, at: int) -> datetime:
    """Read the timestamp at `at`; raises as `read_quickly` does."""
    (seconds,) = SECONDS.unpack_from(data, at)
    if seconds > MAX_SECONDS:
        raise ValueError("pamqp takes this for milliseconds")
    return datetime.fromtimestamp(seconds, tz=UTC)


def _table(data: bytes, at: int, end: int, *, depth: int) -> dict[str, object]:
    table: dict[str, object] = {}
    while at < end:
        start, at = at + 1, at + 1 + data[at]
        if at >= end:
            raise ValueError("a key without a value")
        name = data[start:at].decode()
        at, table[name] = _value(data, at, end, depth=depth)
    return table


def _array(data: bytes, at: int, end: int, *, depth: int) -> list[object]:
    array: list[object] = []
    while at < end:
        at, value = _value(data, at, end, depth=depth)
        array.append(value)
    return array


def _value(data: bytes, at: int, end: int, *, depth: int) -> tuple[int, object]:
    kind, at = data[at], at + 1
    if kind == TEXT:
        after = _end(data, at, end)
        return after, data[at + LENGTH.size : after].decode()
    if (number := NUMBERS.get(kind)) is not None:
        return _checked(at + number.size, end), number.unpack_from(data, at)[0]
    if kind == BOOLEAN:
        return _checked(at + 1, end), data[at] != 0
    if kind == NOTHING:
        return at, None
    if kind == MOMENT:
        return _checked(at + SECONDS.size, end), read_moment(data, at)
    if kind not in (TABLE, ARRAY) or depth == MAX_DEPTH:
        raise ValueError("unusual")
    after = _end(data, at, end)
    read = _table if kind == TABLE else _array
    return after, read(data, at + LENGTH.size, after, depth=depth + 1)


def _end(data: bytes, at: int, end: int) -> int:
    """Say where what has its length at `at` ends."""
    return _checked(at + LENGTH.size + int(LENGTH.unpack_from(data, at)[0]), end)


def _checked(after: int, end: int) -> int:
    if after > end:
        raise ValueError("a length reaches beyond the end")
    return after

"""What the content header of a message says, as far as the witness writes it down. Never fails."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

FIXED = 7 + 12  # bytes of the frame before the flags: the frame's head, class, weight, size of the body
BODY_SIZE_AT = 11
# properties in the order in which they travel, by the bits that say that they are there
PROPERTIES = (
    (15, "content_type"),
    (14, "content_encoding"),
    (13, "headers"),
    (12, "delivery_mode"),
    (11, "priority"),
    (10, "correlation_id"),
    (9, "reply_to"),
    (8, "expiration"),
    (7, "message_id"),
    (6, "timestamp"),
    (5, "type"),
)
ONE_BYTE = {"delivery_mode", "priority"}
TIMESTAMP_SIZE = 8
INTEGERS = {
    b"b": ">b", b"B": ">B", b"s": ">h", b"U": ">h", b"u": ">H", b"I": ">i", b"i": ">I",
    b"l": ">q", b"L": ">q",
}  # fmt: skip
SIZES = {b"t": 1, b"f": 4, b"d": 8, b"T": 8, b"D": 5, b"V": 0}
SIZED = (b"S", b"x", b"A", b"F")  # a length, and that many bytes


@dataclass(slots=True)
class Header:
    """The properties of one message that name it."""

    body_size: int = 0
    texts: dict[str, str] = field(default_factory=dict)  # properties
    headers: dict[str, str | int] = field(default_factory=dict)  # "" where it is neither text nor integer

    @property
    def id(self) -> str:
        """By the order of the contract."""
        return self._text("bw-task-id") or self.texts.get("message_id", "") or self._text("task-id")

    @property
    def name(self) -> str:
        return self.texts.get("type", "") or self._text("task-type")

    def number(self, header: str) -> int:
        value = self.headers.get(header, 0)
        return value if isinstance(value, int) else 0

    def _text(self, header: str) -> str:
        return str(self.headers.get(header, ""))

    def text(self, header: str) -> str:
        return self._text(header)


def read_header(frame: bytes) -> Header:
    """Read a whole frame; what comes behind the first thing that can't be read is left out."""
    header = Header()
    try:
        (header.body_size,) = struct.unpack_from(">Q", frame, BODY_SIZE_AT)
        _read(frame, header)
    except (IndexError, struct.error):
        pass  # a hostile one: what was read stands
    return header


def _read(frame: bytes, header: Header) -> None:
    (flags,) = struct.unpack_from(">H", frame, FIXED)
    at = FIXED + 2
    for bit, name in PROPERTIES:
        if not flags >> bit & 1:
            continue
        if name == "headers":
            (size,) = struct.unpack_from(">I", frame, at)
            for key, value in _entries(frame, at + 4, at + 4 + size):
                header.headers[key] = value
            at += 4 + size
        elif name in ONE_BYTE:
            at += 1
        elif name == "timestamp":
            at += TIMESTAMP_SIZE
        else:
            header.texts[name], at = short(frame, at)


def _entries(frame: bytes, at: int, end: int) -> Iterator[tuple[str, str | int]]:
    """The names and values of a table; it ends where a type is unknown."""
    while at < end:
        name, at = short(frame, at)
        kind, at = frame[at : at + 1], at + 1
        if kind in INTEGERS:
            layout = INTEGERS[kind]
            yield name, int(struct.unpack_from(layout, frame, at)[0])
            at += struct.calcsize(layout)
        elif kind in SIZED:
            (size,) = struct.unpack_from(">I", frame, at)
            yield name, frame[at + 4 : at + 4 + size].decode(errors="replace") if kind == b"S" else ""
            at += 4 + size
        elif kind in SIZES:
            yield name, ""
            at += SIZES[kind]
        else:
            return


def short(frame: bytes, at: int) -> tuple[str, int]:
    """A short string, and where it ends.

    Raises:
        IndexError: the frame ends before it does.
    """
    end = at + 1 + frame[at]
    if end > len(frame):
        raise IndexError
    return frame[at + 1 : end].decode(errors="replace"), end

"""Make frame decoding total: no message that the broker passes on may kill the connection.

RabbitMQ confirms and delivers messages whose properties pamqp can't decode (a
timestamp beyond the calendar, tables nested 600 deep, keys that are not UTF-8). The
exception ends aiormq's reader and with it the connection; the message is delivered
again, and the queue stands still for ever. `install` wraps the one function that
aiormq decodes with. A healthy frame takes pamqp's own path; where that fails, or
would be slow (it copies the rest of a table for each entry, which is quadratic), the
frame is read here: linear, never deeper than `MAX_DEPTH`, keeping what can be read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol

import pamqp.frame
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPError
from pamqp import commands, common, constants, decode
from pamqp.base import Frame
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

from broker_worker.errors import BrokerWorkerError

FRAME = struct.Struct(">BHI")  # type, channel, size of the payload
MAX_DEPTH = 16  # tables and arrays within each other; what is deeper is left out
LARGE = 4096  # bytes of a header frame from which on pamqp's quadratic copying would show
UNREADABLE = (
    PAMQPException,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)

Decoded = tuple[int, int, pamqp.frame.FrameTypes]
Unmarshal = Callable[[bytes], Decoded]


class BrokenContentHeader(ContentHeader):
    """A content header that could only be read in part; `broken` says why."""

    broken: str


class HooksError(BrokerWorkerError):
    """aiormq or pamqp no longer decode by the function that is wrapped here."""


class _Wrapped(Protocol):
    wraps_pamqp: Unmarshal

    def __call__(self, data_in: bytes) -> Decoded: ...


def install() -> None:
    """Wrap pamqp's decoder, for the whole process. Idempotent.

    Raises:
        HooksError: the libraries have changed so that the wrapping has no effect.
    """
    if not hasattr(pamqp.frame.unmarshal, "wraps_pamqp"):
        pamqp.frame.unmarshal = _wrap(pamqp.frame.unmarshal)
        verify_hooks()


def verify_hooks() -> None:
    """Raise HooksError unless aiormq's reader survives a frame that pamqp alone can't decode."""
    properties = struct.pack(">H", 1 << 6) + b"\xff" * 8  # a timestamp of 2^64 - 1
    payload = struct.pack(">HHQ", commands.Basic.frame_id, 0, 7) + properties
    frame = FRAME.pack(constants.FRAME_HEADER, 1, len(payload)) + payload + constants.FRAME_END_CHAR
    try:
        _, _, header = _run(FrameReceiver(_Canned(frame)).get_frame())  # type: ignore[arg-type]  # reads as a stream does
    except (AMQPError, *UNREADABLE) as error:
        raise HooksError("aiormq no longer decodes frames by pamqp.frame.unmarshal") from error
    if not isinstance(header, BrokenContentHeader) or header.body_size != 7:  # noqa: PLR2004 - as packed above
        raise HooksError("a damaged content header is no longer recognised")


def decode_header(payload: bytes) -> ContentHeader:
    """Read a content header's payload, whatever is in it; linear in its size."""
    class_id, weight, body_size = struct.unpack_from(">HHQ", payload)
    reader = _Reader(payload)
    properties = commands.Basic.Properties()
    try:
        offset, flags = _flags(payload, 12)
        _read_properties(reader, properties, flags, offset)
    except UNREADABLE as error:
        reader.problem(f"properties: {_why(error)}")
    header = BrokenContentHeader() if reader.problems else ContentHeader()
    header.class_id, header.weight, header.body_size = class_id, weight, body_size
    header.properties = properties
    if isinstance(header, BrokenContentHeader):
        header.broken = "the properties can't be decoded: " + "; ".join(reader.problems)
    return header


def _wrap(original: Unmarshal) -> _Wrapped:
    def unmarshal(data_in: bytes) -> Decoded:
        # index 0 is the frame's type; most frames are not headers, most headers are small and flat
        if data_in[0] == constants.FRAME_HEADER and (
            len(data_in) > LARGE or data_in.count(b"F") + data_in.count(b"A") > MAX_DEPTH
        ):
            return _decode_frame(data_in)
        try:
            return original(data_in)
        except UNREADABLE:
            return _decode_frame(data_in)

    unmarshal.wraps_pamqp = original  # type: ignore[attr-defined]  # how install() knows its own work
    return unmarshal  # type: ignore[return-value]  # has the attribute from here on


def _decode_frame(data: bytes) -> Decoded:
    frame_type, channel, size = struct.unpack_from(">BHI", data)
    end = constants.FRAME_HEADER_SIZE + size
    if data[end] != constants.FRAME_END:
        raise PAMQPException("the frame has no end")
    payload = data[constants.FRAME_HEADER_SIZE : end]
    if frame_type == constants.FRAME_HEADER:
        return end + 1, channel, decode_header(payload)
    if frame_type == constants.FRAME_METHOD:
        return end + 1, channel, _decode_method(payload)
    raise PAMQPException(f"frame type {frame_type} can't be decoded")


def _decode_method(payload: bytes) -> Frame:
    """Read a method as pamqp does, with a replacement for bytes that are not UTF-8."""
    method: Frame = commands.INDEX_MAPPING[struct.unpack_from(">I", payload)[0]]()
    offset, bit = 4, 0
    for name in method.attributes():
        data_type = method.amqp_type(name)
        if bit and (data_type != "bit" or bit == 8):  # noqa: PLR2004 - bits share an octet
            offset, bit = offset + 1, 0
        if data_type == "bit":
            setattr(method, name, bool(payload[offset] & 1 << bit))
            bit += 1
        elif data_type == "shortstr":
            length = payload[offset]
            setattr(method, name, payload[offset + 1 : offset + 1 + length].decode(errors="replace"))
            offset += 1 + length
        else:
            consumed, value = decode.by_type(payload[offset:], data_type)
            setattr(method, name, value)
            offset += consumed
    return method


def _flags(data: bytes, offset: int) -> tuple[int, int]:
    flags, shift, more = 0, 0, True
    while more:
        (word,) = struct.unpack_from(">H", data, offset)
        flags |= word << shift
        offset, shift, more = offset + 2, shift + 16, bool(word & 1)
    return offset, flags


def _read_properties(reader: _Reader, properties: commands.Basic.Properties, flags: int, offset: int) -> None:
    for name in properties.attributes():
        if flags & properties.flags[name]:
            offset, value = reader.property(name, properties.amqp_type(name), offset)
            setattr(properties, name, value)


_FIXED = {
    b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8,
    b"f": 4, b"d": 8, b"D": 5, b"T": 8, b"V": 0, b"\x00": 0,
}  # fmt: skip
_FIXED_PROPERTIES = {"octet": 1, "timestamp": 8}


@dataclass(slots=True)
class _Reader:
    """Reads fields of `data` by offset and remembers what it could not read."""

    data: bytes
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if len(self.problems) < 5:  # noqa: PLR2004 - enough for a person
            self.problems.append(text)

    def property(self, name: str, data_type: str, offset: int) -> tuple[int, common.FieldValue]:
        if data_type == "shortstr":
            end = offset + 1 + self.data[offset]
            self._check_end(end, len(self.data))
            return end, self._short_string(name, offset + 1, end)
        if data_type == "table":
            end = offset + 4 + self._length(offset, len(self.data))
            return end, self._table(name, offset + 4, end, 1)
        size = _FIXED_PROPERTIES[data_type]
        return offset + size, self._fixed(name, decode.METHODS[data_type], offset, offset + size)

    def _table(self, name: str, offset: int, end: int, depth: int) -> common.FieldTable:
        table: common.FieldTable = {}
        try:
            while offset < end:
                start, offset = offset + 1, offset + 1 + self.data[offset]
                self._check_end(offset, end)
                key = self._short_string(f"a key of {name}", start, offset)
                offset, table[key] = self._value(f"{name}[{key[:40]!r}]", offset, end, depth)
        except UNREADABLE as error:  # its end is known, so only the rest of this table is lost
            self.problem(f"{name}: {_why(error)}")
        return table

    def _array(self, name: str, offset: int, end: int, depth: int) -> common.FieldArray:
        array: common.FieldArray = []
        try:
            while offset < end:
                offset, value = self._value(f"{name}[{len(array)}]", offset, end, depth)
                array.append(value)
        except UNREADABLE as error:
            self.problem(f"{name}: {_why(error)}")
        return array

    def _value(self, name: str, offset: int, end: int, depth: int) -> tuple[int, common.FieldValue]:
        kind, offset = self.data[offset : offset + 1], offset + 1
        if kind in _FIXED:
            after = offset + _FIXED[kind]
            self._check_end(after, end)
            return after, self._fixed(name, decode.TABLE_MAPPING[kind], offset, after)
        if kind not in b"SxFA":
            raise ValueError(f"unknown field type {kind!r}")
        after = offset + 4 + self._length(offset, end)
        self._check_end(after, end)
        if kind in b"Sx":
            return after, decode.TABLE_MAPPING[kind](self.data[offset:after])[1]
        if depth == MAX_DEPTH:
            self.problem(f"nested deeper than {MAX_DEPTH}")
            return after, None
        read = self._table if kind == b"F" else self._array
        return after, read(name if depth == 1 else "headers", offset + 4, after, depth + 1)

    def _fixed(
        self, name: str, read: Callable[[bytes], tuple[int, common.FieldValue]], offset: int, end: int
    ) -> common.FieldValue:
        try:
            return read(self.data[offset:end])[1]
        except UNREADABLE as error:
            self.problem(f"{name}: {_why(error)}")
            return None

    def _short_string(self, name: str, start: int, end: int) -> str:
        raw = self.data[start:end]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.problem(f"{name} is not UTF-8")
            # no longer than a short string may be, so that it can be sent on
            return raw.decode(errors="replace").encode()[:255].decode(errors="ignore")

    def _length(self, offset: int, end: int) -> int:
        self._check_end(offset + 4, end)
        length: int = struct.unpack_from(">I", self.data, offset)[0]
        return length

    def _check_end(self, offset: int, end: int) -> None:
        if offset > end:
            raise ValueError("a length reaches beyond the end")


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


class _Canned:
    """A stream that holds one frame."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def at_eof(self) -> bool:
        return not self._data

    async def readexactly(self, count: int) -> bytes:
        taken, self._data = self._data[:count], self._data[count:]
        return taken


def _run(coroutine: Coroutine[None, None, Decoded]) -> Decoded:
    """Drive a coroutine that never has to wait, so that no event loop is needed."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: Decoded = stop.value
        return result
    raise HooksError("aiormq's reader waits where it did not before")

"""A publisher that can send any bytes as a message's properties, which no client library would."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame
from pamqp.header import ProtocolHeader

FRAME_END = b"\xce"
FRAME_MAX = 131072
BODY_OF_A_FRAME = FRAME_MAX - 8  # without its seven bytes in front and one behind
FLAG = commands.Basic.Properties.flags


class RawPublisher:
    """One connection with one confirming channel, written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.major = 0  # the broker's version

    async def publish(
        self, exchange: str, routing_key: bytes, *, flags: int = 0, properties: bytes = b"", body: bytes = b""
    ) -> Frame:
        """Publish, with the content header's flags and what follows them given as bytes; return the answer.

        The answer is `Basic.Ack`, or what the broker said instead.
        """
        method = (
            struct.pack(">IH", commands.Basic.Publish.index, 0)
            + short(exchange.encode())
            + short(routing_key)
        )
        header = struct.pack(">HHQH", commands.Basic.frame_id, 0, len(body), flags) + properties
        self._write(1, method + b"\0")
        self._write(2, header)
        for start in range(0, len(body), BODY_OF_A_FRAME):
            self._write(3, body[start : start + BODY_OF_A_FRAME])
            await self._writer.drain()
        return await self._read()

    async def open(self, user: str, password: str, vhost: str) -> None:
        self._writer.write(ProtocolHeader().marshal())
        start = await self._read()
        assert isinstance(start, commands.Connection.Start)
        self.major = int(str(start.server_properties["version"]).partition(".")[0])
        await self._call(commands.Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"))
        self._send(commands.Connection.TuneOk(10, FRAME_MAX, 0), 0)
        await self._call(commands.Connection.Open(vhost))
        await self._call(commands.Channel.Open(), 1)
        await self._call(commands.Confirm.Select(), 1)

    def close(self) -> None:
        self._writer.transport.abort()

    def _write(self, frame_type: int, payload: bytes) -> None:
        self._writer.write(struct.pack(">BHI", frame_type, 1, len(payload)) + payload + FRAME_END)

    def _send(self, frame: Frame, channel: int) -> None:
        self._writer.write(pamqp.frame.marshal(frame, channel))

    async def _call(self, frame: Frame, channel: int = 0) -> Frame:
        self._send(frame, channel)
        return await self._read()

    async def _read(self) -> Frame:
        async with asyncio.timeout(60):
            head = await self._reader.readexactly(7)
            rest = await self._reader.readexactly(struct.unpack(">I", head[3:])[0] + 1)
        _, _, frame = pamqp.frame.unmarshal(head + rest)
        assert isinstance(frame, Frame)
        return frame


@asynccontextmanager
async def raw_publisher(url: str) -> AsyncIterator[RawPublisher]:
    """Connect to the broker of an AMQP URL."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 5672)
    publisher = RawPublisher(reader, writer)
    try:
        await publisher.open(
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            unquote(parts.path[1:]) or "/",
        )
        yield publisher
    finally:
        publisher.close()


def short(value: bytes) -> bytes:
    """A short string."""
    return bytes((len(value),)) + value


def long(value: bytes) -> bytes:
    """What a long string, a table and an array have in common: a length and that many bytes."""
    return struct.pack(">I", len(value)) + value


def table(*fields: tuple[bytes, bytes]) -> bytes:
    """A table of names and values; each value begins with its type."""
    return long(b"".join(short(name) + value for name, value in fields))


def nested(depth: int, kind: bytes = b"F") -> bytes:
    """Headers with `depth` tables, or arrays, in each other."""
    value = b"t\x01"
    for _ in range(depth):
        value = b"F" + table((b"", value)) if kind == b"F" else b"A" + long(value)
    return table((b"deep", value))

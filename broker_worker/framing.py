"""Frames over a pipe: what was said, told from whatever else was written into it."""

from __future__ import annotations

import asyncio
import os
import struct

from broker_worker.errors import BrokerWorkerError

MAX_CONTENT_BYTES = 2**30
_MAGIC = b"\xb2bw\x01"  # no text begins so: a stray write can't pass for a length
_HEADER = struct.Struct(">4sI")  # what it is, and the length of the content that follows


class FrameError(BrokerWorkerError):
    """What came over a pipe is not what the other end of it says."""


def frame(content: bytes) -> bytes:
    """Put the header before `content`."""
    if len(content) > MAX_CONTENT_BYTES:
        raise FrameError(f"a frame of {len(content)} bytes, allowed are {MAX_CONTENT_BYTES}")
    return _HEADER.pack(_MAGIC, len(content)) + content


def write_frame(descriptor: int, content: bytes) -> None:
    """Write a whole frame, blocking; raises `OSError` where nobody reads any more."""
    rest = memoryview(frame(content))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read_frame(descriptor: int) -> bytes | None:
    """Read the content of the next frame, blocking; `None` where the pipe ends, even within a frame.

    Raises:
        FrameError: something else was written into the pipe.
    """
    header = _read(descriptor, _HEADER.size)
    return None if header is None else _read(descriptor, _length(header))


async def receive_frame(reader: asyncio.StreamReader) -> bytes | None:
    """Do what `read_frame` does on the event loop."""
    try:
        return await reader.readexactly(_length(await reader.readexactly(_HEADER.size)))
    except asyncio.IncompleteReadError:
        return None


def _read(descriptor: int, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(descriptor, min(size - len(parts), 2**20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _length(header: bytes) -> int:
    magic, length = _HEADER.unpack(header)
    if magic != _MAGIC or length > MAX_CONTENT_BYTES:
        raise FrameError("something that is no frame was written into the pipe")
    return int(length)

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from broker_worker.framing import FrameError, frame, read_frame, receive_frame, write_frame


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError:
            continue


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def test_what_is_written_is_read(pipe: tuple[int, int]) -> None:
    read, write = pipe

    write_frame(write, b"one")
    write_frame(write, b"")
    write_frame(write, b"three")

    assert [read_frame(read) for _ in range(3)] == [b"one", b"", b"three"]


def test_a_frame_may_be_larger_than_the_pipe(pipe: tuple[int, int]) -> None:
    read, write = pipe
    content = os.urandom(3 * 2**20)
    writer = threading.Thread(target=write_frame, args=(write, content))

    writer.start()

    assert read_frame(read) == content
    writer.join()


@pytest.mark.parametrize("kept", [0, 3, 8, 10])
def test_the_end_of_the_pipe_is_the_end_even_within_a_frame(pipe: tuple[int, int], kept: int) -> None:
    read, write = pipe

    os.write(write, frame(b"content")[:kept])
    os.close(write)

    assert read_frame(read) is None


@pytest.mark.parametrize("stray", [b"a stray line of text\n", b"\0" * 8, b"\xff" * 64])
def test_what_else_was_written_is_no_frame(pipe: tuple[int, int], stray: bytes) -> None:
    read, write = pipe

    os.write(write, stray)

    with pytest.raises(FrameError, match="no frame"):
        read_frame(read)


def test_less_than_a_header_of_something_else_shows_at_the_next_frame(pipe: tuple[int, int]) -> None:
    read, write = pipe

    os.write(write, b"!")
    write_frame(write, b"content")

    with pytest.raises(FrameError, match="no frame"):
        read_frame(read)


def test_a_length_beyond_all_sense_is_no_frame(pipe: tuple[int, int]) -> None:
    read, write = pipe
    magic = frame(b"")[:4]

    os.write(write, magic + b"\xff\xff\xff\xff")

    with pytest.raises(FrameError, match="no frame"):
        read_frame(read)


async def test_an_event_loop_reads_the_same() -> None:
    reader = reader_of(frame(b"one") + frame(b"") + frame(b"three")[:-1])

    received = [await receive_frame(reader) for _ in range(3)]

    assert received == [b"one", b"", None]


async def test_an_event_loop_tells_a_stray_write_apart() -> None:
    reader = reader_of(b"a stray line of text\n")

    with pytest.raises(FrameError, match="no frame"):
        await receive_frame(reader)

"""Fill a durable quorum queue with persistent messages, and see that they are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import aiormq
import aiormq.abc
from aiormq.abc import ChannelFrame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from benchmarks.payload import SIZE, TASK, body

MOST_BYTES = 4 * 1024 * 1024  # of one write
MOST_MESSAGES = 500  # of one write
MOST_BODY = 131_072 - 8  # bytes in a frame, as RabbitMQ and aiormq agree on
SECONDS_WITHOUT_PROGRESS = 60.0

Frames = list[Frame | ContentHeader | ContentBody]


async def prefill(
    url: str,
    *,
    queue: str,
    messages: int,
    task: str = TASK,
    with_ids: bool = True,
    make_id: Callable[[int], str] = "bench-{:08d}".format,
    size: int = SIZE,
    make_body: Callable[[int, int], bytes] = body,
) -> None:
    """Put messages into `queue`, declared here if it is missing, and return when the broker has counted them.

    The frames go to the connection's writer as they are: aiormq's own `basic_publish` gives every message an
    id, and takes longer than the run that follows. The broker's count stands for the confirms.
    """
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel(publisher_confirms=False)
        await declare(connection, queue)
        wanted = await depth(connection, queue) + messages
        for numbers in _batches(messages, max(1, min(MOST_MESSAGES, MOST_BYTES // size))):
            frames: Frames = []
            for number in numbers:
                message_id = make_id(number) if with_ids else None
                properties = Basic.Properties(
                    content_type="application/json", delivery_mode=2, message_type=task, message_id=message_id
                )
                frames += _message(queue, properties, make_body(number, size))
            written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            await connection.write_queue.put(ChannelFrame.marshall(channel.number, frames, written))
            await written
        await _until_there(connection, queue, wanted)
    finally:
        await connection.close()


async def declare(connection: aiormq.abc.AbstractConnection, queue: str) -> None:
    """Declare a plain durable quorum queue, unless there is one of this name, whatever its arguments."""
    try:
        await depth(connection, queue)
    except aiormq.ChannelNotFoundEntity:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.close()


async def depth(connection: aiormq.abc.AbstractConnection, queue: str) -> int:
    """Return how many messages of `queue` are ready.

    Raises:
        aiormq.ChannelNotFoundEntity: there is no such queue.
    """
    channel = await connection.channel()
    answer = await channel.queue_declare(queue, passive=True)
    await channel.close()
    return answer.message_count or 0


def _batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _message(queue: str, properties: Basic.Properties, content: bytes) -> Frames:
    parts = [content[start : start + MOST_BODY] for start in range(0, len(content), MOST_BODY)]
    return [
        Basic.Publish(exchange="", routing_key=queue),
        ContentHeader(properties=properties, body_size=len(content)),
        *(ContentBody(part) for part in parts),
    ]


async def _until_there(connection: aiormq.abc.AbstractConnection, queue: str, wanted: int) -> None:
    seen, changed = -1, time.monotonic()
    while (now_there := await depth(connection, queue)) < wanted:
        if now_there != seen:
            seen, changed = now_there, time.monotonic()
        if time.monotonic() - changed > SECONDS_WITHOUT_PROGRESS:
            raise TimeoutError(f"{queue} was to hold {wanted} messages, and stays at {seen}")
        await asyncio.sleep(0.02)

"""The bare loop that latency is compared with: it takes a message, commits one row, and acks.

It gets BENCH_AMQP_URL, BENCH_DATABASE_URL and BENCH_QUEUE, and writes two numbers per message into the file
BENCH_TALLY: which one it was, and when its commit was known here.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.program import stopped

STAMP = struct.Struct("qd")  # the member `n` of the body, seconds of the monotonic clock
CREATE = "CREATE TABLE bench_commits (n bigint PRIMARY KEY, result json NOT NULL)"
INSERT = "INSERT INTO bench_commits (n, result) VALUES ($1, $2)"
CONNECTIONS = 5  # as many as broker_worker has by default: no message waits for the commit of another
PREFETCH = 16  # as broker_worker's by default


async def main() -> None:
    """Consume until SIGTERM."""
    stamps = os.open(os.environ["BENCH_TALLY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    async with (
        asyncpg.create_pool(
            os.environ["BENCH_DATABASE_URL"], min_size=CONNECTIONS, max_size=CONNECTIONS
        ) as pool,
        await aio_pika.connect(os.environ["BENCH_AMQP_URL"]) as connection,
    ):
        await pool.execute(CREATE)

        async def handle(message: AbstractIncomingMessage) -> None:
            number = json.loads(message.body)["n"]
            await pool.execute(INSERT, number, '{"x": 1}')
            os.write(stamps, STAMP.pack(number, time.monotonic()))
            await message.ack()

        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.declare_queue(
            os.environ["BENCH_QUEUE"], durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.consume(handle)
        await stopped()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:  # as broker_worker does
        asyncio.run(main())
    else:
        uvloop.run(main())

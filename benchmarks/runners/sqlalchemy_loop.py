"""The bare loop beside transactional handlers: aio-pika, one SQLAlchemy transaction per message, the ack.

It inserts the handler's row and nothing else, over as many connections as broker_worker's
TRANSACTIONAL_POOL_SIZE gives by default.
"""

from __future__ import annotations

import json
import os
import sys

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from benchmarks import program, tally
from benchmarks.prefill import prefill

CREATE_ROWS = "CREATE TABLE bench_rows (n bigint NOT NULL, text text NOT NULL)"
INSERT = text("INSERT INTO bench_rows (n, text) VALUES (:n, :text)")
POOL_SIZE = 10


async def fill(order: program.Order) -> None:
    """Create the table and publish."""
    connection = await asyncpg.connect(order.database_url)
    await connection.execute(CREATE_ROWS)
    await connection.close()
    await prefill(order.amqp_url, queue=order.queue, messages=order.messages)


async def work(order: program.Order) -> None:
    """Consume until SIGTERM."""
    url = order.database_url.replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def handle(message: AbstractIncomingMessage) -> None:
        payload = json.loads(message.body)
        async with sessions.begin() as session:
            await session.execute(INSERT, {"n": payload["n"], "text": payload["text"]})
            tally.count()
        await message.ack()

    async with await aio_pika.connect(order.amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=int(os.environ["BENCH_PREFETCH"]))
        queue = await channel.get_queue(order.queue, ensure=False)
        await queue.consume(handle)
        await program.stopped()
    await engine.dispose()


if __name__ == "__main__":
    program.run(fill if sys.argv[1:] == ["fill"] else work)

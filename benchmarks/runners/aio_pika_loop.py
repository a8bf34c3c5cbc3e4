"""The bare aio-pika loop: it acks each message, and does nothing else.

BENCH_FORM is `consume` (a callback, each in a task of its own) or `iterator` (one after the other);
BENCH_PREFETCH is how many messages are on their way.
"""

from __future__ import annotations

import os

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from benchmarks import program, tally


async def main(order: program.Order) -> None:
    """Consume until SIGTERM."""
    async with await aio_pika.connect(order.amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=int(os.environ["BENCH_PREFETCH"]))
        queue = await channel.get_queue(order.queue, ensure=False)
        if os.environ["BENCH_FORM"] == "iterator":
            await iterate(queue, order.messages)
        else:
            await queue.consume(handle)
        await program.stopped()


async def handle(message: AbstractIncomingMessage) -> None:
    """Count and ack one message."""
    tally.count()
    await message.ack()


async def iterate(queue: AbstractQueue, messages: int) -> None:
    """Take `messages` one after the other; the iterator can't be left by a signal."""
    async with queue.iterator() as incoming:
        async for message in incoming:
            tally.count()
            await message.ack()
            messages -= 1
            if not messages:
                return


if __name__ == "__main__":
    program.run(main)

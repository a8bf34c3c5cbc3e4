"""The bare aiormq consumer that acks BENCH_ACK_EVERY messages at once: the limit of an asyncio client."""

from __future__ import annotations

import os

import aiormq
import aiormq.abc

from benchmarks import program, tally

ACK_EVERY = int(os.environ.get("BENCH_ACK_EVERY", "50"))


async def main(order: program.Order) -> None:
    """Consume until SIGTERM."""
    connection = await aiormq.connect(order.amqp_url)
    channel = await connection.channel(publisher_confirms=False)

    async def handle(message: aiormq.abc.DeliveredMessage) -> None:
        tally.count()
        tag = message.delivery_tag
        if tag is not None and (tag % ACK_EVERY == 0 or tag == order.messages):
            await channel.basic_ack(tag, multiple=True, wait=False)

    await channel.basic_qos(prefetch_count=int(os.environ["BENCH_PREFETCH"]))
    await channel.basic_consume(order.queue, handle)
    await program.stopped()
    await connection.close()


if __name__ == "__main__":
    program.run(main)

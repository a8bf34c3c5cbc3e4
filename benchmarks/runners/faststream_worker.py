"""FastStream: `faststream run`, one process, without logging; it takes uvloop, which is installed.

BENCH_PREFETCH is its channel's prefetch count. `apply_types=False`, which its documentation offers, leaves
out casting and injection: the handler gets the decoded body as it is, and that is faster.
"""

from __future__ import annotations

import os

from faststream import FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks import program, tally
from benchmarks.runners.command_line import become


async def handle(body: dict[str, object]) -> dict[str, int]:  # noqa: ARG001 - the same signature for all
    """Count. FastStream acks when it has returned, and rejects when it has raised."""
    tally.count()
    return {"x": 1}


def application(order: program.Order) -> FastStream:
    """Subscribe the handler."""
    channel = Channel(prefetch_count=int(os.environ["BENCH_PREFETCH"]))
    broker = RabbitBroker(order.amqp_url, logger=None, apply_types=False, default_channel=channel)
    queue = RabbitQueue(order.queue, queue_type=QueueType.QUORUM, durable=True)
    broker.subscriber(queue)(handle)
    return FastStream(broker, logger=None)


app = application(program.Order.given())

if __name__ == "__main__":
    become("faststream", "run", f"{__spec__.name}:app")

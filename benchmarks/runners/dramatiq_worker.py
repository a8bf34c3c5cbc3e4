"""Dramatiq: `dramatiq`, BENCH_PROCESSES processes of 8 threads.

The actor returns nothing: without its middleware for results, Dramatiq logs a warning about each value.
Dramatiq declares queues without a type. They are quorum queues because the virtual host says so; see
benchmarks/servers.py. What is prefetched is in its own variable `dramatiq_queue_prefetch`.
"""

from __future__ import annotations

import asyncio
import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks import payload, program, tally
from benchmarks.prefill import prefill
from benchmarks.runners.command_line import become


def handle(n: int, text: str) -> None:  # noqa: ARG001 - the parameters are the payload
    """Count."""
    tally.count()


order = program.Order.given()
broker = RabbitmqBroker(url=order.amqp_url)
dramatiq.set_broker(broker)
actor = dramatiq.actor(handle, actor_name=payload.TASK, queue_name=order.queue)


async def fill() -> None:
    """Let Dramatiq declare its queues, and put there what its encoder makes of each call."""
    broker.declare_queue(order.queue, ensure=True)
    broker.close()
    await prefill(order.amqp_url, queue=order.queue, messages=order.messages, make_body=message)


def message(number: int, size: int) -> bytes:
    """Return what `actor.send(**payload)` would send."""
    encoded: bytes = actor.message(n=payload.FIRST + number, text=payload.text(size)).encode()
    return encoded


if __name__ == "__main__":
    if program.asked_to() == "fill":
        asyncio.run(fill())
    else:
        become("dramatiq", __spec__.name, "--processes", os.environ["BENCH_PROCESSES"], "--threads", "8")

"""taskiq with taskiq-aio-pika: `taskiq worker`, one process; it takes uvloop, which is installed.

BENCH_PREFETCH is how many messages RabbitMQ may have sent (`qos`), and as many tasks may run at once.
`--no-parse` leaves out the casting of arguments.
"""

from __future__ import annotations

import asyncio
import os

from taskiq import TaskiqMessage
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from benchmarks import payload, program, tally
from benchmarks.prefill import prefill
from benchmarks.runners.command_line import become


async def handle(n: int, text: str) -> dict[str, int]:  # noqa: ARG001 - the parameters are the payload
    """Count."""
    tally.count()
    return {"x": 1}


order = program.Order.given()
broker = AioPikaBroker(
    order.amqp_url,
    qos=int(os.environ["BENCH_PREFETCH"]),
    task_queues=[Queue(name=order.queue, type=QueueType.QUORUM)],
)
task = broker.register_task(handle, task_name=payload.TASK)


async def fill() -> None:
    """Let taskiq declare its queues, and put there what its formatter makes of each call."""
    await broker.startup()
    await broker.shutdown()
    await prefill(order.amqp_url, queue=order.queue, messages=order.messages, make_body=message)


def message(number: int, size: int) -> bytes:
    """Return what `task.kiq(**payload)` would send."""
    called = TaskiqMessage(
        task_id=f"bench-{number:08d}",
        task_name=task.task_name,
        labels={},
        args=[],
        kwargs={"n": payload.FIRST + number, "text": payload.text(size)},
    )
    sent: bytes = broker.formatter.dumps(called).message
    return sent


if __name__ == "__main__":
    if program.asked_to() == "fill":
        asyncio.run(fill())
    else:
        become(
            *("taskiq", "worker", "--workers", "1", "--max-async-tasks", os.environ["BENCH_PREFETCH"]),
            *("--ack-type", "when_executed", "--no-parse", "--log-level", "WARNING"),
            f"{__spec__.name}:broker",
        )

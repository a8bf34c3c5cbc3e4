"""Celery: `celery worker` with the pool BENCH_POOL (`solo`, or `prefork` with two processes).

BENCH_RESULTS=1 has its database result backend keep state and result of each task. The multiplier is the
higher of the two that its documentation names for short tasks. Celery acks before the task, as by default:
`task_acks_late`, which its documentation advises where a task must survive its worker, is no faster.

Its heartbeat events stay on: without their timer its loop does not see SIGTERM for up to ten seconds.
"""

from __future__ import annotations

import os

from celery import Celery

from benchmarks import payload, program, tally
from benchmarks.runners.command_line import become


def handle(n: int, text: str) -> dict[str, int]:  # noqa: ARG001 - the parameters are the payload
    """Count."""
    tally.count()
    return {"x": 1}


order = program.Order.given()
keeps_results = os.environ.get("BENCH_RESULTS") == "1"
results = "db+" + order.database_url.replace("postgresql:", "postgresql+psycopg:", 1)
app = Celery("bench", broker=order.amqp_url, backend=results if keeps_results else None)
app.conf.update(
    task_default_queue=order.queue,
    task_default_queue_type="quorum",
    task_ignore_result=not keeps_results,
    worker_prefetch_multiplier=128,
    worker_disable_rate_limits=True,
)
task = app.task(handle, name=payload.TASK)


def fill() -> None:
    """Send each task over one connection."""
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(order.messages):
            task.apply_async(kwargs=payload.payload(number), producer=producer)


if __name__ == "__main__":
    if program.asked_to() == "fill":
        fill()
    else:
        become(
            *("celery", "--app", f"{__spec__.name}:app", "worker", "--pool", os.environ["BENCH_POOL"]),
            *("--concurrency", "2", "--without-gossip", "--without-mingle"),
        )

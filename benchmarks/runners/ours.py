"""broker_worker itself: `broker-worker run`, with settings only where the contestant says so.

BENCH_TASK is the task's name, BENCH_IDS=0 publishes without ids, and BENCH_CONCURRENCY is the number in
BROKER_WORKER_QUEUES. Other variables that begin with BROKER_WORKER_ are passed on.
"""

from __future__ import annotations

import asyncio
import os
import sys

import asyncpg

from benchmarks import program
from benchmarks.prefill import prefill
from broker_worker.local.network import free_ports

CREATE_ROWS = "CREATE TABLE bench_rows (n bigint NOT NULL, text text NOT NULL)"


def environment(order: program.Order) -> dict[str, str]:
    """Return what the daemon and its commands are started with."""
    name = order.queue.removeprefix("bw.q.")
    (port,) = free_ports(1)
    return {
        **os.environ,
        "BROKER_WORKER_AMQP_URL": order.amqp_url,
        "BROKER_WORKER_DATABASE_URL": order.database_url,
        "BROKER_WORKER_HANDLERS": os.environ.get("BENCH_HANDLERS", "benchmarks.runners.handlers"),
        "BROKER_WORKER_QUEUES": f"{name}:{os.environ['BENCH_CONCURRENCY']}",
        "BROKER_WORKER_HTTP_BIND": f"127.0.0.1:{port}",  # as by default, but on no fixed port
    }


async def fill(order: program.Order) -> None:
    """Prepare schema and topology, and publish."""
    await asyncio.gather(command(order, "migrate"), command(order, "topology", "apply"), create_rows(order))
    await prefill(
        order.amqp_url,
        queue=order.queue,
        messages=order.messages,
        task=os.environ["BENCH_TASK"],
        with_ids=os.environ.get("BENCH_IDS") != "0",
        size=order.size,
    )


async def create_rows(order: program.Order) -> None:
    """Create the table that the transactional handler writes to."""
    connection = await asyncpg.connect(order.database_url)
    await connection.execute(CREATE_ROWS)
    await connection.close()


async def command(order: program.Order, *words: str) -> None:
    """Run a command of ours, and end with it if it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "broker_worker",
        *words,
        env=environment(order),
        stdout=asyncio.subprocess.DEVNULL,
    )
    if code := await process.wait():
        raise SystemExit(code)


if __name__ == "__main__":
    if program.asked_to() == "fill":
        asyncio.run(fill(program.Order.given()))
    else:
        given = environment(program.Order.given())
        os.execve(sys.executable, [sys.executable, "-m", "broker_worker", "run"], given)  # noqa: S606

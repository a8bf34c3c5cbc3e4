"""pgqueuer: `pgq run`, BENCH_BATCH jobs at a time, over one asyncpg connection; it takes uvloop."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from pgqueuer import PgQueuer, Queries
from pgqueuer.models import Job

from benchmarks import payload, program, tally
from benchmarks.runners.command_line import become


async def handle(job: Job) -> dict[str, int]:
    """Decode the payload, which pgqueuer leaves to the handler, and count."""
    json.loads(job.payload or b"")
    tally.count()
    return {"x": 1}


@asynccontextmanager
async def manager() -> AsyncIterator[PgQueuer]:
    """Register the handler on a connection."""
    connection = await asyncpg.connect(program.Order.given().database_url)
    try:
        queuer = PgQueuer.from_asyncpg_connection(connection)
        queuer.entrypoint(payload.TASK)(handle)
        yield queuer
    finally:
        await connection.close()


async def fill(order: program.Order) -> None:
    """Install the schema, durable as by default, with the vacuum settings that it recommends, and enqueue."""
    connection = await asyncpg.connect(order.database_url)
    queries = Queries.from_asyncpg_connection(connection)
    await queries.install()
    await queries.optimize_autovacuum()
    for start in range(0, order.messages, 1_000):
        bodies = [payload.body(number) for number in range(start, min(start + 1_000, order.messages))]
        await queries.enqueue([payload.TASK] * len(bodies), [*bodies], [0] * len(bodies))
    await connection.close()


if __name__ == "__main__":
    if program.asked_to() == "fill":
        asyncio.run(fill(program.Order.given()))
    else:
        become("pgqueuer", "run", f"{__spec__.name}:manager", "--batch-size", os.environ["BENCH_BATCH"])

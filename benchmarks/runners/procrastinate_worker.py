"""procrastinate: `procrastinate worker`, ten jobs at once, a connection for each and one to listen."""

from __future__ import annotations

import asyncio

import procrastinate

from benchmarks import payload, program, tally
from benchmarks.runners.command_line import become


async def handle(n: int, text: str) -> dict[str, int]:  # noqa: ARG001 - the parameters are the payload
    """Count."""
    tally.count()
    return {"x": 1}


order = program.Order.given()
CONCURRENCY = 10  # one is slower, and more are not faster
CONNECTIONS = CONCURRENCY + 1
app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(
        conninfo=order.database_url, min_size=CONNECTIONS, max_size=CONNECTIONS
    )
)
task = app.task(handle, name=payload.TASK)


async def fill() -> None:
    """Apply the schema, and defer all jobs."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for start in range(0, order.messages, 1_000):
            numbers = range(start, min(start + 1_000, order.messages))
            await task.batch_defer_async(*(payload.payload(number) for number in numbers))


if __name__ == "__main__":
    if program.asked_to() == "fill":
        asyncio.run(fill())
    else:
        become(
            *("procrastinate", "--app", f"{__spec__.name}.app", "--log-level", "warning"),
            *("worker", "--concurrency", str(CONCURRENCY)),
        )

"""Progress and checkpoints: the next attempt goes on where the last one stopped.

`python -m examples.going_on` shows it.
"""

from __future__ import annotations

from broker_worker import Context, Registry
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()
ROWS = 1000


@registry.task("sales.import", max_attempts=5, retry_delay=1)
async def import_sales(file: str, context: Context) -> str:
    first = context.saved or 0
    for row in range(first, ROWS, 100):
        if row == 600 and context.attempt == 1:
            raise ConnectionError(f"{file}: the connection broke in the middle")
        await context.checkpoint(row + 100)  # committed when it returns
        await context.progress((row + 100) / ROWS, f"{row + 100} of {ROWS} rows")  # see `tasks watch`
    return f"attempt {context.attempt} began at row {first}"


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        task_id = await harness.publish(import_sales, {"file": "2026-11.csv"})
        await harness.drain()
        print(harness.task(task_id).result)


if __name__ == "__main__":
    main()

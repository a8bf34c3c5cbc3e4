"""Timeout of an attempt, deadline of a task. `python -m examples.limits_of_time` shows both."""

from __future__ import annotations

import asyncio

from broker_worker import Registry
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()


@registry.task("report.build", timeout=60, max_attempts=2, retry_delay=1)
async def build(rows: int) -> int:
    """One attempt may take a minute."""
    await asyncio.sleep(rows)
    return rows


@registry.task("price.quote", deadline=300, timeout=60, max_attempts=100, retry_delay=30)
async def quote(item: str) -> None:
    """All attempts together may take five minutes: later nobody wants to know."""
    raise ConnectionError(f"no answer for {item}")


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        await harness.publish(build, {"rows": 50}, id="short")
        await harness.publish(build, {"rows": 3600}, id="long")
        await harness.publish(quote, {"item": "tea"}, id="quote")
        await harness.drain()
        for task in harness.tasks():
            print(f"{task.id}: {task.state} {task.reason or task.result} after {len(task.attempts)} attempts")


if __name__ == "__main__":
    main()

"""Four ways to run a handler. `python -m examples.ways_to_run` shows them, without any server."""

from __future__ import annotations

import asyncio
import math
import os
import threading

from broker_worker import Context, Registry, SyncContext
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()


@registry.task("page.fetch")
async def fetch(url: str, context: Context) -> str:
    """On the event loop: for what waits."""
    context.log.info("fetching")
    await asyncio.sleep(1)
    return f"{url} fetched on {threading.current_thread().name}"


@registry.task("text.count")
def count(text: str, context: SyncContext) -> int:
    """In a thread: for what blocks."""
    context.raise_if_cancelled()
    return len(text)


@registry.task("number.is_prime", process=True, memory_limit=512 * 2**20)
def is_prime(number: int) -> dict[str, object]:
    """In a child process: for what computes, leaks or crashes."""
    prime = all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
    return {"prime": prime, "in another process": os.getpid()}


@registry.task("greeting.write")
class WriteGreeting:
    """A class: for what has something to keep between runs."""

    def __init__(self) -> None:
        self.written = 0

    async def run(self, name: str) -> str:
        self.written += 1
        return f"greeting {self.written}: hello, {name}"


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        ids = [
            await harness.publish(fetch, {"url": "https://example.org"}),
            await harness.publish(count, {"text": "four"}),
            await harness.publish(is_prime, {"number": 2**31 - 1}),
            await harness.publish(WriteGreeting, {"name": "Ada"}),
        ]
        await harness.drain()
        for task_id in ids:
            task = harness.task(task_id)
            print(f"{task.name}: {task.state}: {task.result}")


if __name__ == "__main__":
    main()

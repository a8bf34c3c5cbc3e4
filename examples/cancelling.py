"""An operator's cancel, on the loop and in a thread. `python -m examples.cancelling` shows it."""

from __future__ import annotations

import asyncio
import time

from broker_worker import Context, Registry, SyncContext
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()


@registry.task("video.encode", timeout=86400)
async def encode(video: str, context: Context) -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        context.log.info("%s: put away what was begun", video)
        raise  # a handler that returns here has succeeded


@registry.task("archive.unpack", timeout=86400)
def unpack(path: str, context: SyncContext) -> None:
    while path:
        context.raise_if_cancelled()  # a thread has to ask
        time.sleep(0.01)


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        running = [
            await harness.publish(encode, {"video": "one"}),
            await harness.publish(unpack, {"path": "two"}),
        ]
        waiting = await harness.publish(encode, {"video": "three"}, delay=3600)
        await harness.advance(seconds=1)
        for task_id in (*running, waiting):
            await harness.cancel(task_id)
        await harness.drain()
        for task in harness.tasks():
            print(f"{task.name}: {task.state} after {len(task.attempts)} attempts")


if __name__ == "__main__":
    main()

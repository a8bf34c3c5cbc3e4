"""Cancelling in Python 3.11, where a library may answer a cancellation with an error of its own.

`asyncio.wait_for` drops one that comes together with a result, aiormq's tasks reject with the error
that ends the connection, and a rollback on a lost connection raises what the driver raises. Only the
count of a task's cancellations tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

INTERVAL = 3.0  # seconds for a task that is cancelled to end, before it is cancelled again


def cancels() -> int:
    """Count how often the running task was cancelled: more than before means that the error is no answer."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel, and again where that was not heard, until all have ended. Raises none of their errors."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        ended, _ = await asyncio.wait(pending, timeout=INTERVAL)
        for task in ended:
            if not task.cancelled():
                task.exception()  # now asyncio does not complain that nobody has looked at it

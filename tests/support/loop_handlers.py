"""A handler that tells on which event loop it runs."""

from __future__ import annotations

import asyncio

from broker_worker import Registry

registry = Registry()


@registry.task("which_loop")
async def which_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]

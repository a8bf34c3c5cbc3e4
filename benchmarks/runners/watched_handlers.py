"""Handlers of daemons that are measured from outside: nothing is counted in them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from benchmarks.payload import RESULT
from broker_worker import Registry, Retry

DELAY = timedelta(hours=1)

registry = Registry()


@registry.task("bench")
async def at_once(n: int, text: str) -> dict[str, int]:  # noqa: ARG001 - the parameters are the payload
    """Return what all handlers of the benchmarks return."""
    return RESULT


@registry.task("again_later")
async def again_later(n: int, text: str) -> None:  # noqa: ARG001
    """Fail, and ask for another attempt when the measure is long over."""
    raise Retry(delay=DELAY)


@registry.task("never_ends", timeout=DELAY)
async def never_ends(n: int, text: str) -> None:  # noqa: ARG001
    """Keep its place until the daemon stops."""
    await asyncio.Event().wait()

"""The registry of an older release: it knows almost nothing."""

from __future__ import annotations

from broker_worker import Registry

registry = Registry()


@registry.task("old")
async def old() -> None:
    return None

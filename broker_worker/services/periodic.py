"""The only loop of the background services."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from broker_worker.events import Emit, ServiceFailed
from broker_worker.ports import Clock


async def every(
    interval: timedelta,
    run_once: Callable[[], Awaitable[None]],
    *,
    name: str,
    clock: Clock,
    random: Callable[[], float],
    emit: Emit,
    waits_first: bool = False,
) -> None:
    """Run a service's turns until cancelled, `interval` apart give or take a tenth, so that fleets spread.

    A turn that raises is shown, and the next comes as usual.
    """
    is_due = not waits_first
    while True:
        try:
            if is_due:
                await run_once()
        except Exception as error:  # noqa: BLE001 - a service outlives the faults of its turns
            emit(ServiceFailed(name, error))
        is_due = True
        await clock.sleep(interval.total_seconds() * (0.9 + random() / 5))

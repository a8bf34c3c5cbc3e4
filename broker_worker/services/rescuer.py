"""Finds tasks that nobody holds and sends them on."""

from __future__ import annotations

from datetime import timedelta

from broker_worker.events import Emit, ServiceWorked
from broker_worker.ports import Rescues

INTERVAL = timedelta(seconds=5)


class Rescuer:
    """One turn takes a bounded number of each kind."""

    def __init__(self, rescues: Rescues, *, emit: Emit) -> None:
        self._rescues = rescues
        self._emit = emit

    async def run_once(self) -> None:
        """Rescue from dead workers, re-emit what is overdue, end what is lost."""
        for what, turn in (
            ("rescued", self._rescues.rescue),
            ("reemitted", self._rescues.reemit_overdue),
            ("lost", self._rescues.bury_lost),
        ):
            count = await turn()
            if count:
                self._emit(ServiceWorked("rescuer", what, count))

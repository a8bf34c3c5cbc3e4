"""Keeps what attempts report about themselves until it is written: the newest of each, once a second."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from threading import Lock
from typing import Protocol

from broker_worker.errors import StoreUnavailableError
from broker_worker.failure import clean
from broker_worker.ports import Report
from broker_worker.step import Claim

INTERVAL = timedelta(seconds=1)
MAX_NOTE_BYTES = 200


class Reports(Protocol):
    """Where reports go; those of attempts that are over are left out."""

    async def write(self, reports: Sequence[Report]) -> None:
        """Commit what attempts report.

        Raises:
            StoreUnavailableError: whether it was written is not known.
        """


class ProgressWriter:
    """Satisfies `Progress`; what is left at the end of an attempt is dropped."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._newest: dict[tuple[int, int], Report] = {}
        self._lock = Lock()  # handlers in threads report, too

    def report(self, claim: Claim, fraction: float, note: str) -> None:
        """Take note; from any thread, without waiting."""
        report = Report(claim.key, claim.epoch, fraction, clean(note, MAX_NOTE_BYTES))
        with self._lock:
            self._newest[report.key, report.epoch] = report

    async def run_once(self) -> None:
        """Write what was reported since the last turn.

        Raises:
            StoreUnavailableError: it can't be written now; kept for the next turn where nothing newer comes.
        """
        with self._lock:
            taken, self._newest = self._newest, {}
        if not taken:
            return
        try:
            await self._reports.write(list(taken.values()))
        except StoreUnavailableError:
            with self._lock:
                self._newest = taken | self._newest
            raise

"""How far attempts are, as their rows show it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from broker_worker.ports import Report
from broker_worker.store.database import Database


class ProgressStore:
    """Writes for the attempts of one worker."""

    def __init__(self, database: Database, *, worker: UUID) -> None:
        self._database = database
        self._worker = worker

    async def write(self, reports: Sequence[Report]) -> None:
        """Write what attempts report, in one statement; those that are over are left out.

        So is a row that another transaction holds: progress waits for nobody, and the next
        report comes soon. No indexed column is touched, and none that already says the same.

        Raises:
            StoreUnavailableError: whether it was written is not known.
        """
        schema = self._database.schema
        async with self._database.transaction() as connection:
            await connection.execute(
                text(f"""
                    UPDATE {schema}.tasks t SET progress = n.fraction, progress_note = n.note
                    FROM (
                      SELECT t.key, n.fraction, nullif(n.note, '') AS note
                      FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[]),
                                  CAST(:fractions AS real[]), CAST(:notes AS text[]))
                        AS n(key, epoch, fraction, note)
                      JOIN {schema}.tasks t ON t.key = n.key AND t.epoch = n.epoch
                      WHERE t.worker = :worker AND t.state = 'running'
                        AND (t.progress, t.progress_note) IS DISTINCT FROM (n.fraction, nullif(n.note, ''))
                      FOR NO KEY UPDATE OF t SKIP LOCKED
                    ) n WHERE t.key = n.key"""),
                {
                    "worker": self._worker,
                    "keys": [report.key for report in reports],
                    "epochs": [report.epoch for report in reports],
                    "fractions": [report.fraction for report in reports],
                    "notes": [report.note for report in reports],
                },
            )

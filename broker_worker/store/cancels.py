"""Which of a worker's running tasks an operator wants to end."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import text

from broker_worker.store.database import Database


class CancelStore:
    """Looks for one worker."""

    def __init__(self, database: Database, *, worker: UUID) -> None:
        self._database = database
        self._worker = worker

    async def requested(self, claims: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Find those of `claims`, by key and epoch, that run here and are asked to end.

        No statement where there are none.

        Raises:
            StoreUnavailableError: it can't be seen now.
        """
        if not claims:
            return set()
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT t.key, t.epoch
                    FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[])) AS n(key, epoch)
                    JOIN {self._database.schema}.tasks t ON t.key = n.key AND t.epoch = n.epoch
                    WHERE t.worker = :worker AND t.state = 'running' AND t.is_cancel_requested"""),
                {
                    "worker": self._worker,
                    "keys": [key for key, _ in claims],
                    "epochs": [epoch for _, epoch in claims],
                },
            )
            return {(row.key, row.epoch) for row in rows}

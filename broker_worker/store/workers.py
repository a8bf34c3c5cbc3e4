"""The rows of workers: their beats, and their deaths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import text

from broker_worker.errors import DeclaredDeadError
from broker_worker.ports import Beat
from broker_worker.store.database import Database


class WorkerStore:
    """One process is one row; an id is never used again."""

    def __init__(self, database: Database, *, worker: UUID) -> None:
        self._database = database
        self._schema = database.schema
        self._worker = worker

    async def register(self, *, name: str, release: str) -> None:
        """Write this worker's row; nothing may be claimed before. Idempotent."""
        async with self._database.transaction() as connection:
            await connection.execute(
                text(f"""
                    INSERT INTO {self._schema}.workers (id, name, release)
                    VALUES (:id, :name, :release) ON CONFLICT (id) DO NOTHING"""),
                {"id": self._worker, "name": name, "release": release},
            )

    async def beat(self, idle: Mapping[str, float]) -> list[Beat]:
        """Beat once, and look at all workers that are not dead, this one included.

        `idle` says for each queue for how many seconds its consumer has had free prefetch.

        Raises:
            DeclaredDeadError: another worker found this one dead.
            StoreUnavailableError: Postgres can't.
        """
        async with self._database.transaction() as connection:
            alive = await connection.execute(
                text(f"""
                    UPDATE {self._schema}.workers
                    SET beat = beat + 1, beat_at = now(), idle = CAST(CAST(:idle AS text) AS json)
                    WHERE id = :id AND dead_at IS NULL RETURNING id"""),
                {"id": self._worker, "idle": json.dumps(dict(idle))},
            )
            if alive.first() is None:
                raise DeclaredDeadError(
                    "another worker declared this one dead: its heartbeat had stood still"
                )
            rows = await connection.execute(
                text(f"SELECT id, beat FROM {self._schema}.workers WHERE dead_at IS NULL")
            )
            return [Beat(row.id, row.beat) for row in rows]

    async def declare_dead(self, beat: Beat) -> bool:
        """Declare a worker dead if it has not beaten since; `False` if it has, or was dead already."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    UPDATE {self._schema}.workers SET dead_at = now()
                    WHERE id = :id AND beat = :beat AND dead_at IS NULL RETURNING id"""),
                {"id": beat.worker, "beat": beat.beat},
            )
            return rows.first() is not None

    async def leave(self) -> None:
        """Say that this worker is dead: its clean exit."""
        async with self._database.transaction() as connection:
            await connection.execute(
                text(f"UPDATE {self._schema}.workers SET dead_at = now() WHERE id = :id AND dead_at IS NULL"),
                {"id": self._worker},
            )

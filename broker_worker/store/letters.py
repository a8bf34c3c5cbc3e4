"""What the reader of dead letters asks the database."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from broker_worker.store.database import Database


class LetterStore:
    """The dead letters that are known."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def knows(self, letter: UUID, body: bytes) -> bool:
        """Whether this letter, with this body, is there; anybody can write an id into a header."""
        async with self._database.transaction() as connection:
            found = await connection.execute(
                text(f"SELECT body, resolved_at FROM {self._database.schema}.dead_letters WHERE id = :id"),
                {"id": letter},
            )
            row = found.first()
        if row is None:
            return False
        is_erased = row.body == b"" and row.resolved_at is not None
        return row.body == body or is_erased

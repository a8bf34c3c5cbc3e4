"""Checkpoints: what an attempt leaves for the next one, a row for each task that has one."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.errors import ClaimLostError
from broker_worker.step import Claim
from broker_worker.store.database import Database


class CheckpointStore:
    """Saves; satisfies `Checkpoints`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, claim: Claim, state: str) -> None:
        """Commit `state`, JSON, in place of the one before. Repeatable.

        The row of the task is locked: a takeover comes before, and nothing is saved, or after, and sees it.

        Raises:
            ClaimLostError: the attempt is not ours any more; nothing was written.
            StoreUnavailableError: whether it was written is not known.
            StoreDataError: Postgres refuses it.
        """
        async with self._database.transaction() as connection:
            schema = self._database.schema
            saved = await connection.execute(
                text(f"""
                    INSERT INTO {schema}.checkpoints AS c (task_key, state)
                    SELECT t.key, CAST(CAST(:state AS text) AS json) FROM {schema}.tasks t
                    WHERE t.key = :key AND t.epoch = :epoch AND t.worker = :worker AND t.state = 'running'
                    FOR NO KEY UPDATE
                    ON CONFLICT (task_key) DO UPDATE SET state = excluded.state, saved_at = now()
                    RETURNING c.task_key"""),
                {"state": state, "key": claim.key, "epoch": claim.epoch, "worker": claim.row.worker},
            )
            is_ours = saved.first() is not None
        if not is_ours:
            raise ClaimLostError("the checkpoint was not saved: the attempt is not this worker's any more")


async def load_checkpoints(connection: AsyncConnection, schema: str, keys: Sequence[int]) -> dict[int, str]:
    """Read the states that tasks have left, JSON by key; no statement where no task is asked for."""
    if not keys:
        return {}
    rows = await connection.execute(
        text(f"""
            SELECT task_key, CAST(state AS text) AS state FROM {schema}.checkpoints
            WHERE task_key = ANY(CAST(:keys AS bigint[]))"""),
        {"keys": list(keys)},
    )
    return {row.task_key: row.state for row in rows}

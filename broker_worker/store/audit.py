"""Who did what by hand, and what became of it."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.message import TaskId
from broker_worker.store.apply import storable
from broker_worker.store.rows import dump


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one request; `detail` is a line for the person who made it."""

    id: str
    is_done: bool
    detail: str


def default_actor() -> str:
    """Name whoever is logged in, as far as the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of `audit`; the identity stays readable when its row is long gone."""

    actor: str
    action: str
    queue: str
    name: str | None
    message_id: str | None
    task_key: int | None = None
    dead_letter: UUID | None = None

    @classmethod
    def of_task(cls, actor: str, action: str, task: TaskId, *, key: int) -> AuditEntry:
        return cls(actor, action, task.queue, task.name, task.id, task_key=key)


async def write_audit(connection: AsyncConnection, schema: str, entry: AuditEntry) -> None:
    """Insert `entry` in the caller's transaction: what is done and who did it commit together."""
    detail = {"queue": entry.queue, "name": entry.name, "id": entry.message_id}
    await connection.execute(
        text(f"""
            INSERT INTO {schema}.audit (actor, action, task_key, dead_letter, detail)
            VALUES (:actor, :action, CAST(:task_key AS bigint), CAST(:dead_letter AS uuid),
                    CAST(CAST(:detail AS text) AS json))"""),
        {
            "actor": storable(entry.actor),
            "action": entry.action,
            "task_key": entry.task_key,
            "dead_letter": entry.dead_letter,
            "detail": dump(detail),
        },
    )

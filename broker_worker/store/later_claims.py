"""The narrow way of a copy that comes when its task waits for it: one statement claims a batch of attempts.

It writes what `apply` would write of a `Claimed`, without reading the rows first. Whatever needs a decision
(`task.meet`) is left alone: an end, a refusal, a crasher, a deadline, a row that is held elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import TextClause, text

from broker_worker.message import TaskId
from broker_worker.outcome import Reason
from broker_worker.store.database import Database
from broker_worker.task import Arrival, Task, TaskState
from broker_worker.values import dataclass


@dataclass(frozen=True, slots=True)
class LaterClaim:
    """A claim that is not a task's first."""

    row: Task
    saved: str | None  # the last checkpoint, JSON


class LaterClaims:
    """Claims, in a transaction of their own."""

    def __init__(self, database: Database, *, worker: UUID) -> None:
        self._database = database
        self._worker = worker
        self._statement = _claiming(database.schema)

    async def claim(self, arrivals: Sequence[Arrival]) -> dict[TaskId, LaterClaim]:
        """Claim those of `arrivals`, all `may_claim_later`, whose rows wait for just this copy."""
        if not arrivals:
            return {}
        tasks = [arrival.message.task for arrival in arrivals]
        rows = await self._database.single(
            self._statement,
            {
                "worker": self._worker,
                "queues": [task.queue for task in tasks],
                "names": [task.name for task in tasks],
                "ids": [task.id for task in tasks],
                "epochs": [arrival.message.epoch for arrival in arrivals],
                "digests": [arrival.digest for arrival in arrivals],
                "max_attempts": [arrival.max_attempts for arrival in arrivals],
                "most_attempts": [max(arrival.max_attempts, arrival.most_attempts) for arrival in arrivals],
            },
        )
        arrival_by_task = dict(zip(tasks, arrivals, strict=True))
        claims: dict[TaskId, LaterClaim] = {}
        for row in rows:
            (
                key, queue, name, id_, attempt, max_attempts, epoch, reason, interruptions, poisonings,
                reemissions, has_body, not_after, reply_to, correlation_id, saved,
            ) = row  # fmt: skip
            task = TaskId(queue, name, id_)
            after = Task(
                key=key,
                id=task,
                state=TaskState.RUNNING,
                attempt=attempt,
                max_attempts=max_attempts,
                epoch=epoch,
                worker=self._worker,
                digest=arrival_by_task[task].digest,
                reason=Reason(reason) if reason else None,
                interruptions=interruptions,
                poisonings=poisonings,
                reemissions=reemissions,
                has_body=has_body,
                not_after=not_after,
                reply_to=reply_to,
                correlation_id=correlation_id,
            )
            claims[task] = LaterClaim(after, saved)
        return claims


def may_claim_later(arrival: Arrival) -> bool:
    """Whether nothing but its row could keep this copy from being claimed at once."""
    message = arrival.message
    return (
        message.epoch > 0
        and arrival.has_slot
        and arrival.refusal is None
        and arrival.poisoning is None
        and arrival.deadline is None  # the database's clock decides these three
        and message.deliver_at is None
        and message.not_after is None
    )


def _claiming(schema: str) -> TextClause:
    return text(f"""
        WITH n AS (
          SELECT * FROM unnest(
            CAST(:queues AS text[]), CAST(:names AS text[]), CAST(:ids AS text[]), CAST(:epochs AS int[]),
            CAST(:digests AS bytea[]), CAST(:max_attempts AS smallint[]), CAST(:most_attempts AS smallint[])
          ) AS n(queue, name, message_id, epoch, digest, max_attempts, most_attempts)
        ), held AS (
          SELECT t.key, n.max_attempts FROM n
          JOIN {schema}.tasks t
            ON t.queue = n.queue AND t.name = n.name AND t.message_id = n.message_id AND t.epoch = n.epoch
          WHERE t.state IN ('queued', 'retrying') AND t.digest = n.digest AND NOT t.is_cancel_requested
            AND t.attempt < n.most_attempts AND t.deadline_at IS NULL
            AND t.reason IS DISTINCT FROM 'crashed'
          ORDER BY t.key FOR UPDATE OF t SKIP LOCKED
        ), claimed AS (
          UPDATE {schema}.tasks t SET state = 'running', attempt = t.attempt + 1, epoch = t.epoch + 1,
            worker = :worker, max_attempts = held.max_attempts, refused_at = NULL, due_at = NULL,
            started_at = now(), progress = NULL, progress_note = NULL
          FROM held WHERE t.key = held.key
          RETURNING t.key, t.queue, t.name, t.message_id, t.attempt, t.max_attempts, t.epoch, t.reason,
            t.interruptions, t.poisonings, t.reemissions, t.has_body, t.not_after, t.reply_to,
            t.correlation_id
        )
        SELECT claimed.*, CAST(c.state AS text) AS saved
        FROM claimed LEFT JOIN {schema}.checkpoints c ON c.task_key = claimed.key""")

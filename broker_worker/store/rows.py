"""Between rows of `tasks` and the `Task` that decisions are made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row

from broker_worker.message import Message, TaskId, from_record, to_record
from broker_worker.outcome import Reason
from broker_worker.task import Task, TaskState

COLUMNS = (
    "t.key, t.queue, t.name, t.message_id, t.state, t.attempt, t.max_attempts, t.epoch, t.worker, t.digest, "
    "t.reason, t.interruptions, t.poisonings, t.reemissions, t.is_cancel_requested, t.has_body, "
    "t.refused_at, t.not_after, t.deadline_at, t.reply_to, t.correlation_id"
)


_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False)  # `json.dumps` would make one each time


def to_task(row: Row[Any]) -> Task:
    """Read a row that was selected with `COLUMNS`."""
    return Task(
        key=row.key,
        id=TaskId(row.queue, row.name, row.message_id),
        state=TaskState(row.state),
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        epoch=row.epoch,
        worker=row.worker,
        digest=row.digest,
        reason=Reason(row.reason) if row.reason else None,
        interruptions=row.interruptions,
        poisonings=row.poisonings,
        reemissions=row.reemissions,
        is_cancel_requested=row.is_cancel_requested,
        has_body=row.has_body,
        refused_at=row.refused_at,
        not_after=row.not_after,
        deadline_at=row.deadline_at,
        reply_to=row.reply_to,
        correlation_id=row.correlation_id,
    )


def to_message(task: Task, body: bytes, properties: object) -> Message:
    """Rebuild a task's message from its row in `payloads`."""
    record = json.loads(properties) if isinstance(properties, str) else properties
    assert isinstance(record, Mapping)  # noqa: S101 - written by dump_record
    return from_record(task.id, body, record, epoch=task.epoch)


def dump_record(message: Message) -> str:
    """Everything of a message but body and identity, as text for a json column."""
    return dump(to_record(message))


def load(value: object) -> dict[str, Any]:
    """Read an object from a json column, which the driver may have read already; empty for anything else."""
    loaded = json.loads(value) if isinstance(value, str) else value
    return loaded if isinstance(loaded, dict) else {}


def dump(value: object) -> str:
    """JSON that Postgres takes: ASCII only, so that a lone surrogate stays an escape."""
    return _ENCODER.encode(value)

"""The answer that a publisher asked for with `reply_to`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase

from broker_worker.message import Properties
from broker_worker.outcome import Failure
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.task import Task


def is_allowed(reply_to: str | None, patterns: Sequence[str]) -> bool:
    """Say whether replies may go to `reply_to`: names or shell patterns, none by default."""
    if reply_to is None or "\0" in reply_to:
        return False
    return any(fnmatchcase(reply_to, pattern) for pattern in patterns)


def reply_outgoing(task: Task, *, failure: Failure | None, result: str | None) -> Outgoing:
    """Build the reply to a finished task: `{id, name, state, attempt, reason, error_type, result}`."""
    answer = {
        "id": task.id.id,
        "name": task.id.name,
        "state": task.state,
        "attempt": task.attempt,
        "reason": task.reason,
        "error_type": failure.error_type if failure else None,
        "result": json.loads(result) if result is not None else None,
    }
    return Outgoing(
        kind=Kind.REPLY,
        routing_key=task.reply_to or "",
        properties=Properties(content_type="application/json", correlation_id=task.correlation_id),
        body=json.dumps(answer).encode(),
    )

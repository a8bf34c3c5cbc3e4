"""Contexts for unit tests that call a handler themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypedDict, TypeVar, Unpack

from broker_worker.context import AnyHandler, Completion, Context, SyncContext
from broker_worker.message import Message, Scalar, TaskId
from broker_worker.registry import Registry
from broker_worker.sending import Sent, SentEvent, SentTask, write_payload
from broker_worker.testing.clock import BEGINNING

C = TypeVar("C", Context, SyncContext)


@dataclass
class RecordingHands:
    """Keeps what a handler does through its context; satisfies `context.Hands`."""

    registry: Registry | None = None  # for the names of handlers that are sent
    is_cancelled: bool = False
    sent: list[SentTask] = field(default_factory=list)
    events: list[SentEvent] = field(default_factory=list)
    progress: list[tuple[float, str]] = field(default_factory=list)
    checkpoints: list[Any] = field(default_factory=list)  # parsed
    completed: list[object] = field(default_factory=list)  # results

    def report_progress(self, fraction: float, note: str) -> None:
        self.progress.append((fraction, note))

    async def save(self, state: str) -> None:
        self.checkpoints.append(json.loads(state))

    def save_from_thread(self, state: str) -> None:
        self.checkpoints.append(json.loads(state))

    def send(self, sent: Sent) -> None:
        match sent:
            case SentTask():
                self.sent.append(sent)
            case SentEvent():
                self.events.append(sent)

    def name_of(self, task: AnyHandler | str) -> str:
        if isinstance(task, str):
            return task
        known = self.registry.name_of(task) if self.registry else None
        return known or str(getattr(task, "__qualname__", task))

    def complete(self, result: object) -> Completion:
        self.completed.append(result)
        return Completion("SELECT %s", (None,))

    def complete_json(self, result: str | None) -> Completion:
        return self.complete(result)


class Facts(TypedDict, total=False):
    """What a test says of the attempt."""

    name: str
    task_id: str
    queue: str
    payload: object
    headers: Mapping[str, Scalar]
    attempt: int
    max_attempts: int
    may_be_repeat: bool
    deadline: datetime
    saved: object  # the state of the last checkpoint


def make_context(hands: RecordingHands | None = None, **facts: Unpack[Facts]) -> Context:
    """Make the context of an async handler, to call it without a worker; `hands` keeps what it does."""
    return _make(Context, hands, facts)


def make_sync_context(hands: RecordingHands | None = None, **facts: Unpack[Facts]) -> SyncContext:
    """Make the context of a plain handler, likewise."""
    return _make(SyncContext, hands, facts)


def _make(kind: type[C], hands: RecordingHands | None, facts: Facts) -> C:
    identity = TaskId(facts.get("queue", "default"), facts.get("name", "task"), facts.get("task_id", "t-1"))
    attempt = facts.get("attempt", 1)
    return kind(
        message=Message(
            identity, write_payload(facts.get("payload", {})), headers=dict(facts.get("headers", {}))
        ),
        attempt=attempt,
        max_attempts=facts.get("max_attempts", 12),
        may_be_repeat=facts.get("may_be_repeat", attempt > 1),
        deadline=facts.get("deadline", BEGINNING + timedelta(minutes=10)),
        saved_json=write_payload(facts["saved"]).decode() if "saved" in facts else None,
        hands=hands or RecordingHands(),
    )

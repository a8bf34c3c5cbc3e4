"""A recording put in order once, so that each invariant can ask it what it needs."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeVar

from tests.faults.records import (
    AttemptChange,
    Change,
    Child,
    Effect,
    FinalTask,
    HandlerFacts,
    LetterChange,
    OutboxChange,
    Publish,
    Record,
    Recording,
    Run,
    TaskChange,
    TaskKey,
    WorkerChange,
)
from tests.faults.wires import Names, Sent, WireFacts, replay

Moment = tuple[float, int]
R = TypeVar("R")
K = TypeVar("K")

TERMINAL = frozenset({"succeeded", "dead", "cancelled", "expired"})
WAITING = frozenset({"queued", "retrying"})
NEVER: Moment = (float("inf"), 0)
PLAIN = HandlerFacts()
OLD = [each.name for each in fields(TaskChange) if each.name.startswith("old_")]


@dataclass(slots=True)
class Publishing:
    """One publish and its answer."""

    invoke: Publish
    kind: str = "info"  # until an answer says more
    answered_at: float = float("inf")

    @property
    def task(self) -> TaskKey:
        return TaskKey(self.invoke.queue, self.invoke.name, self.invoke.id)


@dataclass(slots=True)
class Life:
    """Everything that was committed about one row, a change for each commit."""

    task: TaskKey
    changes: list[TaskChange]  # in the order of their commits
    moments: list[Moment]

    def at(self, moment: Moment) -> TaskChange | None:
        """The last change that was committed by then."""
        index = bisect_right(self.moments, moment)
        return self.changes[index - 1] if index else None


class Facts:
    """The indexes of one recording; each is built when it is first asked for."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.about = recording.about

    # --- time ------------------------------------------------------------------------

    def moment(self, record: Record) -> Moment:
        """When a record counts, comparable over all files; of equal moments each may have been first."""
        at = record.at
        if isinstance(record, Change) and record.committed_at is not None:
            at = record.committed_at
        return (at, record.order if self.about.has_one_order else 0)

    # --- what was asked for --------------------------------------------------------------

    @cached_property
    def publishings(self) -> list[Publishing]:
        found: dict[int, Publishing] = {}
        answers = []
        for each in self.recording.publisher:
            if each.kind == "invoke":
                found[each.number] = Publishing(each)
            else:
                answers.append(each)
        for each in answers:
            publishing = found.get(each.number)
            if publishing is not None:
                publishing.kind, publishing.answered_at = each.kind, each.at
        return list(found.values())

    @cached_property
    def published(self) -> dict[TaskKey, list[Publishing]]:
        """Publishes by the task that they name."""
        return grouped(self.publishings, lambda each: each.task)

    def handler(self, task: TaskKey) -> HandlerFacts:
        return self.about.handlers.get(task.name, PLAIN)

    # --- the history -------------------------------------------------------------------

    @cached_property
    def tasks(self) -> dict[int, TaskKey]:
        """Identities by key of the row."""
        keys = {each.key: TaskKey(each.queue, each.name, each.id) for each in self.recording.history}
        for each in self.recording.final_tasks:
            keys[each.key] = TaskKey(each.queue, each.name, each.id)
        return keys

    @cached_property
    def raw_lives(self) -> dict[int, list[TaskChange]]:
        """Changes by row, as they were written; the row's lock makes their order that of the commits."""
        by_key = grouped(self.recording.history, lambda each: each.key)
        for changes in by_key.values():
            changes.sort(key=lambda each: (each.order, each.at))
        return by_key

    @cached_property
    def lives(self) -> dict[int, Life]:
        """The same, with all that one transaction did to a row as one change."""
        lives = {}
        for key, raw in self.raw_lives.items():
            changes = _by_commit(raw)
            lives[key] = Life(self.tasks[key], changes, [self.moment(each) for each in changes])
        return lives

    @cached_property
    def life_by_task(self) -> dict[TaskKey, Life]:
        """By identity; of rows that followed one another, the last."""
        return {life.task: life for _, life in sorted(self.lives.items())}

    @cached_property
    def outbox_inserts(self) -> dict[tuple[int, int], list[OutboxChange]]:
        """By key of the task and xid."""
        inserted = [each for each in self.recording.history_outbox if each.op == "insert"]
        return grouped(inserted, lambda each: (each.key, each.xid))

    @cached_property
    def copies_owed(self) -> dict[tuple[int, int], Moment]:
        """When the row of a copy was first committed, by key and epoch of its task."""
        copies = [
            each for each in self.recording.history_outbox if each.op == "insert" and each.kind == "copy"
        ]
        return self._earliest(((each.key, each.epoch), each) for each in copies)

    @cached_property
    def outbox_by_number(self) -> dict[int, OutboxChange]:
        return {each.number: each for each in self.recording.history_outbox if each.op == "insert"}

    @cached_property
    def attempts(self) -> dict[tuple[int, int], AttemptChange]:
        """By key and epoch."""
        return {(each.key, each.epoch): each for each in self.recording.history_attempts}

    @cached_property
    def letters_by_commit(self) -> dict[tuple[int, int], list[LetterChange]]:
        """By key of the task and xid; answers left out."""
        opened = [
            each for each in self.recording.history_letters if each.op != "delete" and not each.resolution
        ]
        return grouped(opened, lambda each: (each.key, each.xid))

    @cached_property
    def letter_moments(self) -> dict[str, Moment]:
        """When a dead letter was first committed, by its id."""
        return self._earliest((each.letter, each) for each in self.recording.history_letters)

    @cached_property
    def letter_bodies(self) -> dict[str, Moment]:
        """The same by the SHA-256 of its body."""
        return self._earliest((each.body, each) for each in self.recording.history_letters)

    @cached_property
    def letter_names(self) -> dict[tuple[str, str], Moment]:
        """The same by queue and id."""
        return self._earliest(
            ((each.queue, each.id), each) for each in self.recording.history_letters if each.id
        )

    @cached_property
    def deaths(self) -> dict[str, WorkerChange]:
        """The row that says that a worker is dead."""
        return {each.worker: each for each in self.recording.history_workers if each.op != "insert"}

    @cached_property
    def registered(self) -> dict[str, Moment]:
        """When a worker's row was committed."""
        inserted = [each for each in self.recording.history_workers if each.op == "insert"]
        return self._earliest((each.worker, each) for each in inserted)

    def is_dead(self, worker: str, by: Moment) -> bool:
        """Whether a worker's death was committed by then."""
        death = self.deaths.get(worker)
        return death is not None and self.moment(death) <= by

    # --- the wire ------------------------------------------------------------------------

    @cached_property
    def wire(self) -> WireFacts:
        known = [*self.published, *self.tasks.values()]
        return replay(self.recording.wire, Names(self.about.prefix, set(known)))

    @cached_property
    def copies_sent(self) -> dict[tuple[str, str, int], list[Sent]]:
        """Publishes of copies by queue, id and epoch."""
        return grouped(
            (each for each in self.wire.sent if not each.wire.letter and not each.wire.event),
            lambda each: (each.wire.routing_key, each.wire.id, each.wire.epoch),
        )

    # --- what handlers did -----------------------------------------------------------------

    @cached_property
    def effects(self) -> dict[TaskKey, list[Effect]]:
        return grouped(self.recording.effects, lambda each: TaskKey(each.queue, each.name, each.id))

    @cached_property
    def begun(self) -> dict[TaskKey, list[Run]]:
        """Runs that began, in order."""
        return self._runs("began")

    @cached_property
    def ended(self) -> dict[TaskKey, list[Run]]:
        return self._runs("ended")

    @cached_property
    def children(self) -> dict[TaskKey, list[Child]]:
        """By parent."""
        return grouped(self.recording.children, lambda each: TaskKey(each.queue, each.name, each.id))

    @cached_property
    def finals(self) -> dict[TaskKey, FinalTask]:
        return {TaskKey(each.queue, each.name, each.id): each for each in self.recording.final_tasks}

    def _runs(self, kind: str) -> dict[TaskKey, list[Run]]:
        runs = sorted(
            (each for each in self.recording.runs if each.kind == kind),
            key=lambda each: (each.at, each.order),
        )
        return grouped(runs, lambda each: TaskKey(each.queue, each.name, each.id))

    def _earliest(self, pairs: Iterable[tuple[K, Record]]) -> dict[K, Moment]:
        earliest: dict[K, Moment] = {}
        for name, record in pairs:
            moment = self.moment(record)
            if moment < earliest.get(name, NEVER):
                earliest[name] = moment
        return earliest


def grouped(records: Iterable[R], name: Callable[[R], K]) -> dict[K, list[R]]:
    """Records by name, in the order that they come in."""
    groups: defaultdict[K, list[R]] = defaultdict(list)
    for record in records:
        groups[name(record)].append(record)
    return dict(groups)


def _by_commit(raw: list[TaskChange]) -> list[TaskChange]:
    changes: list[TaskChange] = []
    for change in raw:
        if changes and change.xid and changes[-1].xid == change.xid:
            changes[-1] = _joined(changes[-1], change)
        else:
            changes.append(change)
    return changes


def _joined(first: TaskChange, last: TaskChange) -> TaskChange:
    """From what was there before the first to what was there after the last."""
    return replace(last, **{name: getattr(first, name) for name in OLD})

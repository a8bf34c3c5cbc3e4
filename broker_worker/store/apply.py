"""Write steps: rows locked by the caller, everything of one step in the caller's transaction.

Whatever a step owes becomes a row of `outbox` here, and an `Owed` in the answer
where this process has the message at hand and may publish it at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.dead_letter import DeadLetter, letter_key, letter_outgoing
from broker_worker.message import Properties, Scalar, TaskId, tag, untag
from broker_worker.outgoing import LONGEST_RUNG, Kind, Outgoing, Owed, copy_outgoing
from broker_worker.reply import reply_outgoing
from broker_worker.step import Copy, Step
from broker_worker.store.notices import notify_ended
from broker_worker.store.rows import dump, dump_record
from broker_worker.task import TERMINAL, Task, TaskState

PROMPTNESS = timedelta(minutes=2)  # how long the worker that wrote an outbox row has it to itself


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did: what it owes, and the rows that it made, by identity."""

    owed: list[Owed]
    created: dict[TaskId, Task]


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """What goes into `outbox`; `outgoing` is there where it can be published from memory."""

    kind: Kind
    routing_key: str
    task_key: int | None
    epoch: int
    delay: timedelta
    outgoing: Outgoing | None
    is_held: bool = False  # waits in Postgres until it is due
    dead_letter: UUID | None = None
    keeps_content: bool = False  # nothing else of the database has body and properties


async def apply(
    connection: AsyncConnection, schema: str, steps: Sequence[Step], *, worker: UUID | None
) -> Applied:
    """Write `steps`; the new rows among them get their keys, unless another made the same row first.

    Without a `worker`, nobody here publishes: what is owed is left to any relay, at once.
    """
    changed = [step for step in steps if step.before is not None]
    created = [step for step in steps if step.before is None]
    made = await _insert(connection, schema, created)
    changed += made
    moved = [step for step in changed if step.before != step.after]
    if moved:
        awaited = await _update(connection, schema, moved)
        await notify_ended(connection, schema, [key for key in _ended(moved) if key in awaited])
    await _bodies(connection, schema, changed)
    await _attempts(connection, schema, changed)
    letters = [step.letter for step in changed if step.letter is not None]
    await insert_letters(connection, schema, letters, worker=worker)
    rows = [row for step in changed for row in _owes(step, worker)]
    owed = await insert_outbox(connection, schema, rows, worker=worker)
    return Applied(owed, {step.after.id: step.after for step in made})


async def _insert(connection: AsyncConnection, schema: str, steps: Sequence[Step]) -> list[Step]:
    """Create rows in their state before the step; a row that another made meanwhile is left out."""
    if not steps:
        return []
    steps = sorted(steps, key=lambda step: step.after.id)  # one lock order for all
    rows = [step.after for step in steps]
    messages = [step.message for step in steps]
    made = await connection.execute(
        text(f"""
            INSERT INTO {schema}.tasks (queue, name, message_id, digest, state, max_attempts, not_after,
                                        reply_to, correlation_id, producer, published_at)
            SELECT queue, name, id, digest, 'queued', max_attempts, not_after,
                   reply_to, correlation_id, producer, published_at
            FROM unnest(
              CAST(:queues AS text[]), CAST(:names AS text[]), CAST(:ids AS text[]),
              CAST(:digests AS bytea[]), CAST(:max_attempts AS smallint[]),
              CAST(:not_after AS timestamptz[]), CAST(:reply_tos AS text[]),
              CAST(:correlation_ids AS text[]), CAST(:producers AS text[]),
              CAST(:published_at AS timestamptz[])
            ) AS n(queue, name, id, digest, max_attempts, not_after, reply_to, correlation_id, producer,
                   published_at)
            ON CONFLICT DO NOTHING RETURNING key, queue, name, message_id"""),
        {
            "queues": [row.id.queue for row in rows],
            "names": [row.id.name for row in rows],
            "ids": [row.id.id for row in rows],
            "digests": [row.digest for row in rows],
            "max_attempts": [row.max_attempts for row in rows],
            "not_after": [row.not_after for row in rows],
            "reply_tos": [storable(row.reply_to) for row in rows],
            "correlation_ids": [storable(row.correlation_id) for row in rows],
            "producers": [storable(message.app_id) if message else None for message in messages],
            "published_at": [message.published_at if message else None for message in messages],
        },
    )
    keys = {TaskId(row.queue, row.name, row.message_id): row.key for row in made}
    return [_made(step, keys[step.after.id]) for step in steps if step.after.id in keys]


def _made(step: Step, key: int) -> Step:
    after = replace(step.after, key=key)
    letter = replace(step.letter, task_key=key) if step.letter else None
    # the row just made differs from any `after`: it is queued, at epoch 0, without a body
    before = replace(after, has_body=False, epoch=-1)
    return replace(step, before=before, after=after, letter=letter)


async def _update(connection: AsyncConnection, schema: str, steps: Sequence[Step]) -> set[int]:
    """Write rows; the keys of those that somebody waits for."""
    statement = text(f"""
        UPDATE {schema}.tasks t SET
          state = n.state, attempt = n.attempt, max_attempts = n.max_attempts, epoch = n.epoch,
          worker = n.worker, interruptions = n.interruptions, poisonings = n.poisonings,
          reemissions = n.reemissions, has_body = n.has_body, is_cancel_requested = n.cancel,
          reason = n.reason, refused_at = n.refused_at, not_after = n.not_after,
          deadline_at = n.deadline_at,
          error_type = CASE WHEN n.error_type IS NULL AND n.keeps_error
                            THEN t.error_type ELSE n.error_type END,
          error_message = CASE WHEN n.error_type IS NULL AND n.keeps_error
                               THEN t.error_message ELSE n.error_message END,
          due_at = CASE WHEN n.keeps_due THEN t.due_at ELSE now() + n.due_in END,
          started_at = CASE WHEN n.starts THEN now() ELSE t.started_at END,
          progress = CASE WHEN n.starts THEN NULL ELSE t.progress END,
          progress_note = CASE WHEN n.starts THEN NULL ELSE t.progress_note END,
          finished_at = CASE WHEN n.ends THEN now() END
        FROM unnest(
          CAST(:keys AS bigint[]), CAST(:states AS text[]), CAST(:attempts AS smallint[]),
          CAST(:max_attempts AS smallint[]), CAST(:epochs AS int[]), CAST(:workers AS uuid[]),
          CAST(:interruptions AS smallint[]), CAST(:poisonings AS smallint[]),
          CAST(:reemissions AS smallint[]), CAST(:has_body AS boolean[]), CAST(:cancels AS boolean[]),
          CAST(:reasons AS text[]), CAST(:refused_at AS timestamptz[]), CAST(:not_after AS timestamptz[]),
          CAST(:deadlines AS timestamptz[]),
          CAST(:error_types AS text[]), CAST(:error_messages AS text[]), CAST(:keeps_error AS boolean[]),
          CAST(:due_in AS interval[]), CAST(:keeps_due AS boolean[]), CAST(:starts AS boolean[]),
          CAST(:ends AS boolean[])
        ) AS n(key, state, attempt, max_attempts, epoch, worker, interruptions, poisonings, reemissions,
               has_body, cancel, reason, refused_at, not_after, deadline_at, error_type, error_message,
               keeps_error, due_in, keeps_due, starts, ends)
        WHERE t.key = n.key RETURNING t.key, t.is_awaited""")
    rows = [step.after for step in steps]
    written = await connection.execute(
        statement,
        {
            "keys": [row.key for row in rows],
            "states": [str(row.state) for row in rows],
            "attempts": [row.attempt for row in rows],
            "max_attempts": [row.max_attempts for row in rows],
            "epochs": [row.epoch for row in rows],
            "workers": [row.worker for row in rows],
            "interruptions": [row.interruptions for row in rows],
            "poisonings": [row.poisonings for row in rows],
            "reemissions": [row.reemissions for row in rows],
            "has_body": [row.has_body for row in rows],
            "cancels": [row.is_cancel_requested for row in rows],
            "reasons": [str(row.reason) if row.reason else None for row in rows],
            "refused_at": [row.refused_at for row in rows],
            "not_after": [row.not_after for row in rows],
            "deadlines": [row.deadline_at for row in rows],
            "error_types": [step.failure.error_type if step.failure else None for step in steps],
            "error_messages": [step.failure.message if step.failure else None for step in steps],
            "keeps_error": [row.state not in TERMINAL for row in rows],
            "due_in": [step.due_in for step in steps],
            "keeps_due": [_keeps_due(step) for step in steps],
            "starts": [_starts(step) for step in steps],
            "ends": [row.state in TERMINAL for row in rows],
        },
    )
    return {row.key for row in written if row.is_awaited}


def _ended(steps: Sequence[Step]) -> list[int]:
    return [step.after.key for step in steps if step.after.state in TERMINAL]


def _keeps_due(step: Step) -> bool:
    """A step that changes neither state nor epoch (a body given, a cancel asked for) moves no date."""
    before = step.before
    return before is not None and before.state == step.after.state and before.epoch == step.after.epoch


def _starts(step: Step) -> bool:
    return step.after.state is TaskState.RUNNING and (
        step.before is None or step.before.epoch != step.after.epoch
    )


async def _bodies(connection: AsyncConnection, schema: str, steps: Sequence[Step]) -> None:
    gained = [
        (step.after.key, step.message)
        for step in steps
        if step.after.has_body and step.before and not step.before.has_body and step.message
    ]
    if gained:
        await connection.execute(
            text(f"""
                INSERT INTO {schema}.payloads (task_key, body, properties)
                SELECT key, body, CAST(properties AS json) FROM unnest(
                  CAST(:keys AS bigint[]), CAST(:bodies AS bytea[]), CAST(:properties AS text[])
                ) AS n(key, body, properties) ON CONFLICT DO NOTHING"""),
            {
                "keys": [key for key, _ in gained],
                "bodies": [message.body for _, message in gained],
                "properties": [dump_record(message) for _, message in gained],
            },
        )
    lost = [
        step.after.key for step in steps if step.before and step.before.has_body and not step.after.has_body
    ]
    if lost:
        await connection.execute(
            text(f"DELETE FROM {schema}.payloads WHERE task_key = ANY(CAST(:keys AS bigint[]))"),
            {"keys": lost},
        )


async def _attempts(connection: AsyncConnection, schema: str, steps: Sequence[Step]) -> None:
    records = [(step.after.key, step.record) for step in steps if step.record is not None]
    if not records:
        return
    await connection.execute(
        text(f"""
            INSERT INTO {schema}.attempts (task_key, epoch, attempt, worker, outcome, error_type,
                                           error_message, traceback, started_at)
            SELECT n.key, n.epoch, n.attempt, n.worker, n.outcome, n.error_type, n.error_message,
                   n.traceback, t.started_at
            FROM unnest(
              CAST(:keys AS bigint[]), CAST(:epochs AS int[]), CAST(:attempts AS smallint[]),
              CAST(:workers AS uuid[]), CAST(:outcomes AS text[]), CAST(:error_types AS text[]),
              CAST(:error_messages AS text[]), CAST(:tracebacks AS text[])
            ) AS n(key, epoch, attempt, worker, outcome, error_type, error_message, traceback)
            JOIN {schema}.tasks t ON t.key = n.key
            ON CONFLICT DO NOTHING"""),
        {
            "keys": [key for key, _ in records],
            "epochs": [record.epoch for _, record in records],
            "attempts": [record.attempt for _, record in records],
            "workers": [record.worker for _, record in records],
            "outcomes": [record.outcome for _, record in records],
            "error_types": [record.failure.error_type if record.failure else None for _, record in records],
            "error_messages": [record.failure.message if record.failure else None for _, record in records],
            "tracebacks": [record.failure.traceback if record.failure else None for _, record in records],
        },
    )


async def insert_letters(
    connection: AsyncConnection, schema: str, letters: Sequence[DeadLetter], *, worker: UUID | None
) -> set[UUID]:
    """Insert dead letters, or open them again where they were resolved before. Returns those ids."""
    if not letters:
        return set()
    by_id = {letter.id: letter for letter in letters}  # one statement can't touch a row twice
    rows = [by_id[id_] for id_ in sorted(by_id)]  # one lock order for all
    inserted = await connection.execute(
        text(f"""
            INSERT INTO {schema}.dead_letters (id, task_key, queue, name, message_id, reason, error_type,
              error_message, fingerprint, attempt, epoch, worker, body, properties)
            SELECT id, task_key, queue, name, message_id, reason, error_type, error_message, fingerprint,
              attempt, epoch, :worker, body, CAST(properties AS json)
            FROM unnest(
              CAST(:ids AS uuid[]), CAST(:task_keys AS bigint[]), CAST(:queues AS text[]),
              CAST(:names AS text[]), CAST(:message_ids AS text[]), CAST(:reasons AS text[]),
              CAST(:error_types AS text[]), CAST(:error_messages AS text[]), CAST(:fingerprints AS text[]),
              CAST(:attempts AS smallint[]), CAST(:epochs AS int[]), CAST(:bodies AS bytea[]),
              CAST(:properties AS text[])
            ) WITH ORDINALITY AS n(id, task_key, queue, name, message_id, reason, error_type, error_message,
                                   fingerprint, attempt, epoch, body, properties, position)
            ORDER BY position
            ON CONFLICT (id) DO UPDATE SET resolved_at = NULL, resolution = NULL
            WHERE dead_letters.resolved_at IS NOT NULL RETURNING id"""),
        {
            "worker": worker,
            "ids": [row.id for row in rows],
            "task_keys": [row.task_key for row in rows],
            "queues": [storable(row.queue) for row in rows],
            "names": [storable(row.name) for row in rows],
            "message_ids": [storable(row.message_id) for row in rows],
            "reasons": [str(row.reason) for row in rows],
            "error_types": [storable(row.failure.error_type) for row in rows],
            "error_messages": [storable(row.failure.message) for row in rows],
            "fingerprints": [row.failure.fingerprint for row in rows],
            "attempts": [row.attempt for row in rows],
            "epochs": [row.epoch for row in rows],
            "bodies": [row.body for row in rows],
            "properties": [dump(row.record) for row in rows],
        },
    )
    return {row.id for row in inserted}


async def insert_outbox(
    connection: AsyncConnection, schema: str, rows: Sequence[OutboxRow], *, worker: UUID | None
) -> list[Owed]:
    """Insert what is owed; rows that can be published from memory are this worker's for a while."""
    if not rows:
        return []
    ours = [row.outgoing if worker is not None and not row.is_held else None for row in rows]
    contents = [row.outgoing if row.keeps_content else None for row in rows]
    made = await connection.execute(
        text(f"""
            INSERT INTO {schema}.outbox (kind, exchange, routing_key, task_key, dead_letter, epoch,
                                         properties, body, worker, deliver_at, available_at)
            SELECT kind, exchange, routing_key, task_key, dead_letter, epoch, CAST(properties AS json),
                   body, worker, now() + delay, now() + available
            FROM unnest(
              CAST(:kinds AS text[]), CAST(:exchanges AS text[]), CAST(:routing_keys AS text[]),
              CAST(:task_keys AS bigint[]), CAST(:letters AS uuid[]), CAST(:epochs AS int[]),
              CAST(:properties AS text[]), CAST(:bodies AS bytea[]), CAST(:workers AS uuid[]),
              CAST(:delays AS interval[]), CAST(:available AS interval[])
            ) WITH ORDINALITY AS n(kind, exchange, routing_key, task_key, dead_letter, epoch,
                                   properties, body, worker, delay, available, position)
            ORDER BY position RETURNING id"""),
        {
            "kinds": [str(row.kind) for row in rows],
            "exchanges": [row.outgoing.exchange if row.outgoing else None for row in rows],
            "routing_keys": [row.routing_key for row in rows],
            "task_keys": [row.task_key for row in rows],
            "letters": [row.dead_letter for row in rows],
            "epochs": [row.epoch for row in rows],
            "properties": [_dump_kept(content.properties) if content else None for content in contents],
            "bodies": [content.body if content else None for content in contents],
            "workers": [worker if outgoing else None for outgoing in ours],
            "delays": [row.delay for row in rows],
            "available": [
                PROMPTNESS if outgoing else (row.delay if row.is_held else timedelta(0))
                for outgoing, row in zip(ours, rows, strict=True)
            ],
        },
    )
    ids = sorted(row.id for row in made)  # given in the order of the rows
    return [Owed(id_, outgoing) for id_, outgoing in zip(ids, ours, strict=True) if outgoing is not None]


def _dump_kept(properties: Properties) -> str:
    """What `kept_properties` reads; everything else of such a message is the same for all."""
    headers = {name: tag(value) for name, value in properties.headers.items() if isinstance(value, Scalar)}
    return dump({"correlation_id": properties.correlation_id, "headers": headers})


def kept_properties(record: Mapping[str, Any]) -> Properties:
    """Rebuild the properties of an outbox row that keeps its content."""
    return Properties(
        content_type="application/json",
        correlation_id=record.get("correlation_id"),
        headers={name: untag(value) for name, value in (record.get("headers") or {}).items()},
    )


def _owes(step: Step, worker: UUID | None) -> list[OutboxRow]:
    rows = []
    if step.copy is not None:
        rows.append(_copy_row(step, step.copy))
    if step.letter is not None and step.letter.is_published:
        rows.append(letter_row(step.letter, worker))
    if step.after.reply_to is not None and step.after.state in TERMINAL and step.before != step.after:
        outgoing = reply_outgoing(step.after, failure=step.failure, result=None)
        rows.append(reply_row(step.after.key, outgoing))
    return rows


def _copy_row(step: Step, copy: Copy) -> OutboxRow:
    after = step.after
    is_held = copy.is_exact or copy.delay > LONGEST_RUNG
    outgoing = None
    if step.message is not None:
        outgoing = copy_outgoing(step.message, epoch=after.epoch, attempt=after.attempt, delay=copy.delay)
    return OutboxRow(Kind.COPY, after.id.queue, after.key, after.epoch, copy.delay, outgoing, is_held)


def letter_row(letter: DeadLetter, worker: UUID | None) -> OutboxRow:
    """What a dead letter owes the dead-letter exchange."""
    outgoing = letter_outgoing(letter, worker=str(worker or ""), failed_at=datetime.now(UTC))
    return OutboxRow(
        Kind.DEAD_LETTER,
        letter_key(letter),
        letter.task_key,
        letter.epoch,
        timedelta(0),
        outgoing,
        dead_letter=letter.id,
    )


def reply_row(task_key: int, outgoing: Outgoing) -> OutboxRow:
    """What is owed to a publisher that asked for an answer."""
    return OutboxRow(
        Kind.REPLY, outgoing.routing_key, task_key, 0, timedelta(0), outgoing, keeps_content=True
    )


def event_row(task_key: int, epoch: int, outgoing: Outgoing) -> OutboxRow:
    """What is owed to an exchange that a handler named."""
    return OutboxRow(
        Kind.EVENT, outgoing.routing_key, task_key, epoch, timedelta(0), outgoing, keeps_content=True
    )


def storable(value: str | None) -> str | None:
    """Replace what Postgres refuses as text."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if value is not None else None

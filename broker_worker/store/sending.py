"""What handlers sent, written in the commit of their success: tasks with their copies, and events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.message import Message, TaskId
from broker_worker.outgoing import Owed, event_outgoing
from broker_worker.sending import Sent, SentEvent, SentTask
from broker_worker.step import Claim, Step, letter_of_conflict, step_of_sending
from broker_worker.store.apply import OutboxRow, apply, event_row, insert_letters, insert_outbox, letter_row

Item = TypeVar("Item")

PART_ROWS = 500  # of one statement; the first so many are published at once, the others by any relay
PART_BYTES = 16 * 1024 * 1024  # of bodies in one statement


async def write_sent(
    connection: AsyncConnection, schema: str, runs: Sequence[tuple[Claim, Sequence[Sent]]], *, worker: UUID
) -> list[Owed]:
    """Write what runs sent in the transaction of their success; answer with what `worker` publishes itself.

    Runs that sent nothing cost no statement.
    """
    steps: list[Step] = []
    rows: list[OutboxRow] = []
    for claim, sent in runs:
        for position, one in enumerate(sent):
            match one:
                case SentTask():
                    steps.append(step_of_sending(one, max_attempts=claim.row.max_attempts))
                case SentEvent():
                    rows.append(_event(claim, one, position))
    owed = await _write_tasks(connection, schema, steps, worker=worker)
    for number, part in enumerate(_parts(rows, [len(row.outgoing.body) for row in rows if row.outgoing])):
        owed += await insert_outbox(connection, schema, part, worker=worker if number == 0 else None)
    return owed


async def _write_tasks(
    connection: AsyncConnection, schema: str, steps: Sequence[Step], *, worker: UUID
) -> list[Owed]:
    """Make the rows that are not there yet, and a dead letter of whatever means another task by its identity.

    Existing rows are looked up first: an insert would wait for a transaction that updates one,
    and two runs that send each other's task would wait for each other.
    """
    wanted: dict[TaskId, Step] = {}
    for step in steps:
        wanted.setdefault(step.after.id, step)
    digests = await _digests(connection, schema, list(wanted))
    new = sorted((wanted[task] for task in wanted.keys() - digests.keys()), key=lambda step: step.after.id)
    owed: list[Owed] = []
    for number, part in enumerate(_parts(new, [len(_message(step).body) for step in new])):
        applied = await apply(connection, schema, part, worker=worker if number == 0 else None)
        owed += applied.owed
        digests |= {task: row.digest for task, row in applied.created.items()}
    digests |= await _digests(connection, schema, list(wanted.keys() - digests.keys()))  # lost a race
    conflicting = [step for step in steps if digests.get(step.after.id) not in (None, step.after.digest)]
    return owed + await _bury(connection, schema, conflicting, worker=worker)


async def _digests(connection: AsyncConnection, schema: str, tasks: Sequence[TaskId]) -> dict[TaskId, bytes]:
    if not tasks:
        return {}
    rows = await connection.execute(
        text(f"""
            SELECT t.queue, t.name, t.message_id, t.digest
            FROM unnest(CAST(:queues AS text[]), CAST(:names AS text[]), CAST(:ids AS text[]))
              AS n(queue, name, message_id)
            JOIN {schema}.tasks t USING (queue, name, message_id)"""),
        {
            "queues": [task.queue for task in tasks],
            "names": [task.name for task in tasks],
            "ids": [task.id for task in tasks],
        },
    )
    return {TaskId(row.queue, row.name, row.message_id): row.digest for row in rows}


async def _bury(
    connection: AsyncConnection, schema: str, steps: Sequence[Step], *, worker: UUID
) -> list[Owed]:
    letters = {letter.id: letter for letter in (letter_of_conflict(_message(step)) for step in steps)}
    inserted = await insert_letters(
        connection, schema, [letters[id_] for id_ in sorted(letters)], worker=worker
    )
    rows = [letter_row(letters[id_], worker) for id_ in sorted(inserted)]
    return await insert_outbox(connection, schema, rows, worker=worker)


def _event(claim: Claim, event: SentEvent, position: int) -> OutboxRow:
    outgoing = event_outgoing(
        event, sender=claim.message, key=claim.key, epoch=claim.epoch, position=position
    )
    return event_row(claim.key, claim.epoch, outgoing)


def _message(step: Step) -> Message:
    assert step.message is not None  # noqa: S101 - step_of_sending has it
    return step.message


def _parts(items: Sequence[Item], sizes: Sequence[int]) -> Iterator[Sequence[Item]]:
    """Cut `items` into what one statement can carry, by their number and their `sizes` in bytes."""
    start, total = 0, 0
    for position, size in enumerate(sizes):
        if position > start and (position - start == PART_ROWS or total + size > PART_BYTES):
            yield items[start:position]
            start, total = position, 0
        total += size
    if items:
        yield items[start:]

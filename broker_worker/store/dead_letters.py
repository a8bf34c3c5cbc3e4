"""The desk of dead letters, for people: list, group, show, replay, discard.

Nothing here publishes and nothing is deleted. What a replay owes is a row of the
outbox that belongs to nobody: a worker's relay takes it within a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.dead_letter import is_untaken
from broker_worker.message import Message, TaskId, from_record
from broker_worker.outgoing import Kind
from broker_worker.step import step_of_replay
from broker_worker.store.apply import OutboxRow, apply, insert_outbox
from broker_worker.store.audit import AuditEntry, Verdict, write_audit
from broker_worker.store.database import Database
from broker_worker.store.queries import page_size
from broker_worker.store.rows import COLUMNS, load, to_task
from broker_worker.task import Task, TaskState

SELECTED_AT_ONCE = 500  # letters of a selection whose ids are fetched in one go

GROUP = (  # equal for letters that failed in the same way; short enough to be typed
    "left(md5(concat_ws(chr(31), d.reason, coalesce(d.name, ''), "
    "d.error_type, coalesce(d.fingerprint, ''))), 12)"
)
LETTER_COLUMNS = (
    "d.id, d.task_key, d.queue, d.name, d.message_id, d.reason, d.error_type, d.error_message, "
    f"d.fingerprint, {GROUP} AS error_group, d.attempt, d.epoch, d.worker, d.failed_at, d.resolved_at, "
    "d.resolution, octet_length(d.body) AS body_bytes"
)
CONDITIONS = f"""
  (CAST(:reason AS text) IS NULL OR d.reason = :reason)
  AND (CAST(:queue AS text) IS NULL OR d.queue = :queue)
  AND (CAST(:name AS text) IS NULL OR d.name = :name)
  AND (CAST(:group AS text) IS NULL OR d.fingerprint = :group OR {GROUP} = :group)"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters: all that is given has to fit. `group` is a group's id or a fingerprint."""

    reason: str | None = None
    queue: str | None = None
    name: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class KeptLetter:
    """One dead letter in a list: everything but its body and properties."""

    id: UUID
    queue: str
    name: str | None
    message_id: str | None
    reason: str
    error_type: str
    error_message: str
    fingerprint: str | None
    group: str
    attempt: int
    epoch: int
    worker: UUID | None
    task_key: int | None
    failed_at: datetime
    resolved_at: datetime | None
    resolution: str | None
    body_bytes: int


@dataclass(frozen=True, slots=True)
class LetterDetail:
    """One dead letter with what came: `properties` as JSON could hold them."""

    letter: KeptLetter
    body: bytes
    properties: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Open letters that failed in the same way."""

    group: str
    reason: str
    name: str | None
    error_type: str
    fingerprint: str | None
    count: int
    first_seen: datetime
    last_seen: datetime
    example: UUID


@dataclass(frozen=True, slots=True)
class _Found:
    """A letter under lock, and the row that its replay or its identity concerns."""

    letter: KeptLetter
    message: Message | None  # nothing where its identity can't be read
    task: Task | None
    is_untaken: bool  # its body is not in the database


class Desk:
    """Every change is one transaction per letter, with the name of who made it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._schema = database.schema

    # --- reading -----------------------------------------------------------------

    async def list_letters(
        self,
        selection: Selection,
        *,
        with_resolved: bool = False,
        limit: int = 50,
        before: tuple[datetime, UUID] | None = None,
    ) -> list[KeptLetter]:
        """List letters, newest first; `before` is `failed_at` and `id` of the last one of the page before."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT {LETTER_COLUMNS} FROM {self._schema}.dead_letters d
                    WHERE {CONDITIONS} AND (d.resolved_at IS NULL OR CAST(:with_resolved AS boolean))
                      AND (CAST(:failed_at AS timestamptz) IS NULL
                           OR (d.failed_at, d.id) < (CAST(:failed_at AS timestamptz), CAST(:id AS uuid)))
                    ORDER BY d.failed_at DESC, d.id DESC LIMIT :limit"""),
                {
                    **_conditions(selection),
                    "with_resolved": with_resolved,
                    "failed_at": before[0] if before else None,
                    "id": before[1] if before else None,
                    "limit": page_size(limit),
                },
            )
            return [_kept(row) for row in rows]

    async def groups(self, selection: Selection, *, limit: int = 100) -> list[LetterGroup]:
        """Count open letters that failed in the same way, the most frequent first."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT {GROUP} AS error_group, d.reason, d.name, d.error_type, d.fingerprint,
                      count(*) AS letters, min(d.failed_at) AS first_seen, max(d.failed_at) AS last_seen,
                      (array_agg(d.id ORDER BY d.failed_at DESC))[1] AS example
                    FROM {self._schema}.dead_letters d WHERE d.resolved_at IS NULL AND {CONDITIONS}
                    GROUP BY d.reason, d.name, d.error_type, d.fingerprint
                    ORDER BY letters DESC, last_seen DESC LIMIT :limit"""),
                {**_conditions(selection), "limit": page_size(limit)},
            )
            return [
                LetterGroup(
                    group=row.error_group,
                    reason=row.reason,
                    name=row.name,
                    error_type=row.error_type,
                    fingerprint=row.fingerprint,
                    count=row.letters,
                    first_seen=row.first_seen,
                    last_seen=row.last_seen,
                    example=row.example,
                )
                for row in rows
            ]

    async def show(self, id_: UUID) -> LetterDetail | None:
        """Show one letter with its body, resolved or not."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT {LETTER_COLUMNS}, d.body, d.properties
                    FROM {self._schema}.dead_letters d WHERE d.id = :id"""),
                {"id": id_},
            )
            row = rows.first()
        return None if row is None else LetterDetail(_kept(row), row.body, load(row.properties))

    async def count(self, selection: Selection) -> int:
        """Count the open letters of a selection."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT count(*) FROM {self._schema}.dead_letters d
                    WHERE d.resolved_at IS NULL AND {CONDITIONS}"""),
                _conditions(selection),
            )
            return int(rows.scalar_one())

    async def select(self, selection: Selection) -> AsyncIterator[UUID]:
        """Go through the letters that are open now, oldest first; those that come meanwhile are left out."""
        after = (datetime.min.replace(tzinfo=UTC), UUID(int=0))
        until: datetime | None = None
        while True:
            async with self._database.transaction() as connection:
                until = until or (await connection.execute(text("SELECT now()"))).scalar_one()
                rows = (
                    await connection.execute(
                        text(f"""
                            SELECT d.id, d.failed_at FROM {self._schema}.dead_letters d
                            WHERE d.resolved_at IS NULL AND {CONDITIONS}
                              AND d.failed_at <= CAST(:until AS timestamptz)
                              AND (d.failed_at, d.id) > (CAST(:failed_at AS timestamptz), CAST(:id AS uuid))
                            ORDER BY d.failed_at, d.id LIMIT {SELECTED_AT_ONCE}"""),
                        {**_conditions(selection), "until": until, "failed_at": after[0], "id": after[1]},
                    )
                ).all()
            for row in rows:
                yield row.id
            if len(rows) < SELECTED_AT_ONCE:
                return
            after = (rows[-1].failed_at, rows[-1].id)

    # --- changing ----------------------------------------------------------------

    async def replay(self, id_: UUID, *, actor: str) -> Verdict:
        """Send a letter's message on its way again.

        A dead task begins anew, under its old id and with all its attempts; a message that
        is no task goes back to its queue as it came. Repeatable: a resolved letter stays as it is.
        """
        async with self._database.transaction() as connection:
            found = await self._lock(connection, id_)
            if found is None:
                return Verdict(str(id_), is_done=False, detail="no such dead letter")
            if (obstacle := _obstacle(found)) is not None:
                return Verdict(str(id_), is_done=False, detail=obstacle)
            await self._send_again(connection, found)
            await self._resolve(connection, found.letter, "replayed", actor=actor, action="replay")
            return Verdict(str(id_), is_done=True, detail=f"replayed to queue {found.letter.queue}")

    async def discard(self, id_: UUID, *, actor: str) -> Verdict:
        """Close a letter without doing anything about it; it stays readable. Repeatable."""
        async with self._database.transaction() as connection:
            found = await self._lock(connection, id_)
            if found is None:
                return Verdict(str(id_), is_done=False, detail="no such dead letter")
            if (resolved := _resolved(found.letter)) is not None:
                return Verdict(str(id_), is_done=False, detail=resolved)
            await self._resolve(connection, found.letter, "discarded", actor=actor, action="discard")
            return Verdict(str(id_), is_done=True, detail="discarded")

    async def _lock(self, connection: AsyncConnection, id_: UUID) -> _Found | None:
        """Lock the task first and its letter second, as everything else does that needs both."""
        query = f"""
            SELECT {LETTER_COLUMNS}, d.body, d.properties
            FROM {self._schema}.dead_letters d WHERE d.id = :id"""
        row = (await connection.execute(text(query), {"id": id_})).first()
        if row is None:
            return None
        task = await self._lock_task(connection, _kept(row))
        row = (await connection.execute(text(f"{query} FOR UPDATE"), {"id": id_})).first()
        if row is None:
            return None
        letter = _kept(row)
        return _Found(letter, _message(letter, row), task, is_untaken(load(row.properties)))

    async def _lock_task(self, connection: AsyncConnection, letter: KeptLetter) -> Task | None:
        if letter.task_key is not None:
            condition = "t.key = CAST(:key AS bigint)"
        else:
            condition = (
                "t.queue = :queue AND t.name = CAST(:name AS text) AND t.message_id = CAST(:id AS text)"
            )
        values = {
            "key": letter.task_key,
            "queue": letter.queue,
            "name": letter.name,
            "id": letter.message_id,
        }
        query = text(f"SELECT {COLUMNS} FROM {self._schema}.tasks t WHERE {condition} FOR UPDATE")
        row = (await connection.execute(query, values)).first()
        return to_task(row) if row is not None else None

    async def _send_again(self, connection: AsyncConnection, found: _Found) -> None:
        if found.task is not None and found.message is not None:
            step = step_of_replay(found.task, found.message)
            await apply(connection, self._schema, [step], worker=None)
            return
        letter = found.letter
        copy = OutboxRow(
            Kind.COPY,
            letter.queue,
            task_key=None,
            epoch=0,
            delay=timedelta(0),
            outgoing=None,
            dead_letter=letter.id,
        )
        await insert_outbox(connection, self._schema, [copy], worker=None)

    async def _resolve(
        self, connection: AsyncConnection, letter: KeptLetter, resolution: str, *, actor: str, action: str
    ) -> None:
        await connection.execute(
            text(f"""
                UPDATE {self._schema}.dead_letters SET resolved_at = now(), resolution = :resolution
                WHERE id = :id"""),
            {"id": letter.id, "resolution": resolution},
        )
        entry = AuditEntry(
            actor,
            action,
            letter.queue,
            letter.name,
            letter.message_id,
            task_key=letter.task_key,
            dead_letter=letter.id,
        )
        await write_audit(connection, self._schema, entry)


def _obstacle(found: _Found) -> str | None:
    """Say why a letter can't be replayed, if it can't."""
    if (resolved := _resolved(found.letter)) is not None:
        return resolved
    if found.is_untaken:
        return "its body was too large to be taken: RabbitMQ has the message, in the queue *.oversize"
    if found.task is None:
        return None
    if found.message is None or found.message.digest() != found.task.digest:
        return _why_not_its_message(found.letter)
    if found.letter.task_key is None:
        return f"its task is known and {found.task.state}: the message would be taken for a duplicate"
    if found.task.state is not TaskState.DEAD:
        return f"its task is not dead but {found.task.state}"
    if found.task.epoch != found.letter.epoch:
        return "its task died again since then: replay that dead letter"
    return None


def _why_not_its_message(letter: KeptLetter) -> str:
    if letter.task_key is None:
        return "another message still has this id: publish it under another one, or discard it"
    return "its message is not there any more: publish the task again, under another id"


def _resolved(letter: KeptLetter) -> str | None:
    if letter.resolved_at is None:
        return None
    return f"already {letter.resolution} at {letter.resolved_at.isoformat(timespec='seconds')}"


def _message(letter: KeptLetter, row: Row[Any]) -> Message | None:
    if letter.name is None or letter.message_id is None:
        return None
    task = TaskId(letter.queue, letter.name, letter.message_id)
    return from_record(task, row.body, load(row.properties), epoch=letter.epoch)


def _conditions(selection: Selection) -> dict[str, object]:
    return {
        "reason": selection.reason,
        "queue": selection.queue,
        "name": selection.name,
        "group": selection.group,
    }


def _kept(row: Row[Any]) -> KeptLetter:
    return KeptLetter(
        id=row.id,
        queue=row.queue,
        name=row.name,
        message_id=row.message_id,
        reason=row.reason,
        error_type=row.error_type,
        error_message=row.error_message,
        fingerprint=row.fingerprint,
        group=row.error_group,
        attempt=row.attempt,
        epoch=row.epoch,
        worker=row.worker,
        task_key=row.task_key,
        failed_at=row.failed_at,
        resolved_at=row.resolved_at,
        resolution=row.resolution,
        body_bytes=row.body_bytes,
    )

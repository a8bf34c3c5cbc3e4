"""The outbox: what is owed to the world, until the broker confirmed it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from asyncpg import Record
from sqlalchemy import text

from broker_worker.dead_letter import DeadLetter, carried_properties, letter_outgoing
from broker_worker.errors import StoreUnavailableError
from broker_worker.message import TASK_ID, Properties, TaskId, from_record
from broker_worker.outcome import Failure, Reason
from broker_worker.outgoing import Kind, Outgoing, Owed, copy_outgoing
from broker_worker.store.apply import PROMPTNESS, kept_properties
from broker_worker.store.database import Database
from broker_worker.store.rows import load

PAUSE = timedelta(seconds=1)  # of a row that was not even sent, for want of a connection
LONGEST_PAUSE = timedelta(minutes=5)  # between two tries of a row that can't be published
REPLY_TRIES = 20  # of a reply, over about an hour; everything else is tried for ever


class OutboxStore:
    """Rows are taken for two minutes at a time: a taker that dies gives them back by that."""

    def __init__(self, database: Database, *, worker: UUID) -> None:
        self._database = database
        self._schema = database.schema
        self._worker = worker
        self._taking = text(f"""
            WITH due AS (
              SELECT o.id FROM {database.schema}.outbox o
              LEFT JOIN {database.schema}.workers w ON w.id = o.worker
              WHERE o.available_at <= now() + CAST(:promptness AS interval)
                AND (o.available_at <= now() OR w.dead_at IS NOT NULL)
              ORDER BY o.available_at LIMIT :limit FOR UPDATE OF o SKIP LOCKED
            ), taken AS (
              UPDATE {database.schema}.outbox o
              SET worker = :worker, available_at = now() + CAST(:promptness AS interval)
              FROM due WHERE o.id = due.id
              RETURNING o.*
            )
            SELECT o.id, o.kind, o.exchange, o.routing_key, o.task_key, o.epoch, o.properties, o.body,
              greatest(o.deliver_at - now(), interval '0') AS delay,
              t.queue, t.name, t.message_id, t.attempt, t.epoch AS task_epoch, t.state,
              p.body AS task_body, p.properties AS task_properties,
              d.id AS letter_id, d.task_key AS letter_task, d.queue AS letter_queue,
              d.name AS letter_name, d.message_id AS letter_message_id, d.reason AS letter_reason,
              d.error_type, d.error_message, d.fingerprint, d.attempt AS letter_attempt,
              d.epoch AS letter_epoch, d.worker AS letter_worker, d.body AS letter_body,
              d.properties AS letter_properties, d.failed_at
            FROM taken o
            LEFT JOIN {database.schema}.tasks t ON t.key = o.task_key
            LEFT JOIN {database.schema}.payloads p ON p.task_key = o.task_key
            LEFT JOIN {database.schema}.dead_letters d ON d.id = o.dead_letter""")
        self._deleting = text(f"DELETE FROM {database.schema}.outbox WHERE id = ANY(CAST(:ids AS bigint[]))")
        self._returning = text(f"""
            UPDATE {database.schema}.outbox SET worker = NULL, available_at = now() + CAST(:pause AS interval)
            WHERE id = ANY(CAST(:ids AS bigint[]))""")

    async def take(self, limit: int) -> list[Owed]:
        """Take rows that are due, or whose worker is dead, or that it left lying for two minutes.

        A copy whose task has moved on is stale: it is deleted here, and the next one taken in its place.
        """
        owed: list[Owed] = []
        while (room := limit - len(owed)) > 0:
            try:
                found, stale = await self._take(room)
            except StoreUnavailableError:
                if owed:  # these are taken, and would lie for two minutes
                    break
                raise
            owed += found
            if len(found) + stale < room:
                break
        return owed

    async def _take(self, limit: int) -> tuple[list[Owed], int]:
        """Take at most `limit` rows; answer with what is to be sent, and how many were stale.

        A row of a worker comes back two minutes later at most, so that what waits longer is not looked at.
        """
        rows = await self._database.single(
            self._taking, {"worker": self._worker, "promptness": PROMPTNESS, "limit": limit}
        )
        owed, stale = [], []
        for row in rows:
            outgoing = _outgoing(row)
            if outgoing is None:
                stale.append(row["id"])
            else:
                owed.append(Owed(row["id"], outgoing))
        if stale:
            with suppress(StoreUnavailableError):  # then they come back, and are stale again
                await self._database.single(self._deleting, {"ids": stale})
        return owed, len(stale)

    async def delete(self, ids: Sequence[int]) -> None:
        """Forget what the broker has confirmed."""
        await self._database.single(self._deleting, {"ids": list(ids)})

    async def return_unsent(self, ids: Sequence[int]) -> None:
        """Leave rows that nobody tried to send to any relay, a second later: nothing is wrong with them."""
        await self._database.single(self._returning, {"ids": list(ids), "pause": PAUSE})

    async def put_back(self, ids: Sequence[int]) -> None:
        """Leave rows that could not be published to any relay, later and later.

        A reply is given up in the end: nobody may be left who wants to hear it.
        """
        async with self._database.transaction() as connection:
            await connection.execute(
                text(f"""
                    DELETE FROM {self._schema}.outbox
                    WHERE id = ANY(CAST(:ids AS bigint[])) AND kind = 'reply' AND failures >= :most"""),
                {"ids": list(ids), "most": REPLY_TRIES},
            )
            await connection.execute(
                text(f"""
                    UPDATE {self._schema}.outbox SET worker = NULL, failures = least(failures + 1, 1000),
                      available_at = now() + least(interval '1 s' * (1 << least(failures, 10)),
                                                   CAST(:longest AS interval))
                    WHERE id = ANY(CAST(:ids AS bigint[]))"""),
                {"ids": list(ids), "longest": LONGEST_PAUSE},
            )


def _outgoing(row: Record) -> Outgoing | None:
    """Rebuild what a row stands for; nothing where it is stale."""
    match Kind(row["kind"]):
        case Kind.REPLY | Kind.EVENT as kind:
            return Outgoing(
                kind=kind,
                routing_key=row["routing_key"],
                properties=kept_properties(load(row["properties"])),
                body=row["body"],
                exchange=row["exchange"],
            )
        case Kind.DEAD_LETTER:
            return letter_outgoing(
                _letter(row), worker=str(row["letter_worker"] or ""), failed_at=_utc(row["failed_at"])
            )
        case Kind.COPY:
            return _copy_of_task(row) if row["task_key"] is not None else _copy_of_letter(row)


def _copy_of_task(row: Record) -> Outgoing | None:
    if (
        row["task_body"] is None
        or row["task_epoch"] != row["epoch"]
        or row["state"] not in {"queued", "retrying"}
    ):
        return None
    task = TaskId(row["queue"], row["name"], row["message_id"])
    message = from_record(task, row["task_body"], load(row["task_properties"]), epoch=row["epoch"])
    return copy_outgoing(message, epoch=row["epoch"], attempt=row["attempt"], delay=row["delay"])


def _copy_of_letter(row: Record) -> Outgoing | None:
    """A replayed dead letter that is no task goes back as it came."""
    if row["letter_id"] is None:
        return None
    carried = carried_properties(load(row["letter_properties"]))
    headers = dict(carried.headers)
    if row["letter_message_id"] is not None:
        headers[TASK_ID] = row["letter_message_id"]
    properties = Properties(
        type=row["letter_name"],
        content_type=carried.content_type,
        content_encoding=carried.content_encoding,
        correlation_id=carried.correlation_id,
        reply_to=carried.reply_to,
        app_id=carried.app_id,
        timestamp=carried.timestamp,
        headers=headers,
    )
    return Outgoing(
        kind=Kind.COPY, routing_key=row["routing_key"], properties=properties, body=row["letter_body"]
    )


def _letter(row: Record) -> DeadLetter:
    return DeadLetter(
        id=row["letter_id"],
        queue=row["letter_queue"],
        name=row["letter_name"],
        message_id=row["letter_message_id"],
        reason=Reason(row["letter_reason"]),
        failure=Failure(row["error_type"], row["error_message"], fingerprint=row["fingerprint"]),
        body=row["letter_body"],
        record=load(row["letter_properties"]),
        attempt=row["letter_attempt"],
        epoch=row["letter_epoch"],
        task_key=row["letter_task"],
    )


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)

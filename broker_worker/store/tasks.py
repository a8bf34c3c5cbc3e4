"""Tasks: what a delivery meets, and the end of a run. Every answer is given after its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.dead_letter import DeadLetter
from broker_worker.message import TaskId
from broker_worker.outcome import Outcome, Succeeded
from broker_worker.outgoing import Owed
from broker_worker.ports import Delivery, Memory
from broker_worker.reply import reply_outgoing
from broker_worker.step import Claim, Met, conflict_letter, new_row, step_of_decision, step_of_outcome
from broker_worker.store.apply import (
    apply,
    insert_letters,
    insert_outbox,
    letter_row,
    reply_row,
    storable,
)
from broker_worker.store.database import Database
from broker_worker.store.group_commit import GroupCommit
from broker_worker.store.rows import COLUMNS, dump_record, to_task
from broker_worker.task import (
    Adopted,
    Arrival,
    Claimed,
    Decision,
    Holder,
    Resumed,
    Task,
    TaskState,
    meet,
)

LOCKED_ELSEWHERE_PAUSE = 0.05  # seconds until a row that another transaction holds is looked at again


@dataclass(frozen=True, slots=True)
class Coming:
    """A delivery on its way to its row."""

    arrival: Arrival
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Ending:
    """An outcome on its way to its row."""

    claim: Claim
    outcome: Outcome


class TaskStore:
    """The inbox. `owed` is told, after each commit, what this worker has to publish."""

    def __init__(
        self,
        database: Database,
        *,
        worker: UUID,
        memory: Memory,
        owed: Callable[[list[Owed]], None],
        grace: timedelta,
        keeps_payloads: bool,
    ) -> None:
        self._database = database
        self._schema = database.schema
        self._worker = worker
        self._memory = memory
        self._owed = owed
        self._grace = grace
        self._keeps_payloads = keeps_payloads
        self._arrivals = GroupCommit(self._commit_arrivals, key=lambda item: item.arrival.message.task)
        self._successes = GroupCommit(self._commit_successes, key=lambda item: item.claim.key)
        self._endings = GroupCommit(self._commit_endings, key=lambda item: item.claim.key)

    async def run(self) -> None:
        """Commit what is written until cancelled."""
        async with asyncio.TaskGroup() as writers:
            writers.create_task(self._arrivals.run())
            writers.create_task(self._successes.run())
            writers.create_task(self._endings.run())

    async def arrive(self, arrival: Arrival, delivery: Delivery) -> Met:
        """Decide what a delivery means and commit what follows, a claim among it.

        Repeating it is safe: an own claim whose commit's reply was lost is found again.

        Raises:
            StoreUnavailableError: Postgres can't; whether it was written is not known.
            StoreDataError: Postgres refuses a value of this message.
        """
        while True:
            met = await self._arrivals.write(Coming(arrival, delivery))
            if met is not None:
                return met
            await asyncio.sleep(LOCKED_ELSEWHERE_PAUSE)

    async def record(self, claim: Claim, outcome: Outcome) -> bool:
        """Commit an outcome and all it owes; `False` if the claim is lost and nothing was written.

        Repeating it is safe, and how a lost reply is resolved.

        Raises:
            StoreUnavailableError: Postgres can't; whether it was written is not known.
            StoreDataError: Postgres refuses a value of this outcome.
        """
        if isinstance(outcome, Succeeded):
            return await self._successes.write(Ending(claim, outcome))
        return await self._endings.write(Ending(claim, outcome))

    async def bury(self, letter: DeadLetter, *, is_published: bool = False) -> None:
        """Keep a message that is no task as a dead letter; `is_published`: it came as one.

        Raises:
            StoreUnavailableError: Postgres can't; whether it was written is not known.
        """
        async with self._database.transaction() as connection:
            inserted = await insert_letters(connection, self._schema, [letter], worker=self._worker)
            rows = [letter_row(letter, self._worker)] if inserted and not is_published else []
            owed = await insert_outbox(connection, self._schema, rows, worker=self._worker)
        self._owed(owed)

    # --- arrivals ----------------------------------------------------------------

    async def _commit_arrivals(self, batch: Sequence[Coming]) -> list[Met | None]:
        """Claim new tasks in one statement; decide the rest under their rows' locks.

        Memory is told last: if the second commit fails, every writer of the batch is told so and
        comes again, and a claim of the first that memory knew would then look like a run that goes on.
        """
        fresh = [coming for coming in batch if _is_plainly_new(coming.arrival)]
        claimed = await self._claim_new(fresh) if fresh else {}
        rest = [coming for coming in batch if coming.arrival.message.task not in claimed]
        met = await self._decide(rest) if rest else {}
        for coming in fresh:
            task = coming.arrival.message.task
            if task in claimed:
                row = _first_row(coming.arrival, claimed[task], self._worker)
                met[task] = self._remember(Claimed(attempt=1, epoch=1), row, coming)
        return [met.get(coming.arrival.message.task) for coming in batch]

    async def _claim_new(self, batch: Sequence[Coming]) -> dict[TaskId, int]:
        """Insert the rows that are not there yet, as claims of their first attempt; their keys."""
        batch = sorted(batch, key=lambda coming: coming.arrival.message.task)  # one lock order for all
        arrivals = [coming.arrival for coming in batch]
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    INSERT INTO {self._schema}.tasks (queue, name, message_id, digest, state, attempt,
                      max_attempts, epoch, worker, started_at, producer, correlation_id, reply_to,
                      published_at, not_after)
                    SELECT n.queue, n.name, n.id, n.digest, 'running', 1, n.max_attempts, 1, :worker, now(),
                      n.producer, n.correlation_id, n.reply_to, n.published_at, n.not_after
                    FROM unnest(
                      CAST(:queues AS text[]), CAST(:names AS text[]), CAST(:ids AS text[]),
                      CAST(:digests AS bytea[]), CAST(:max_attempts AS smallint[]),
                      CAST(:producers AS text[]), CAST(:correlation_ids AS text[]),
                      CAST(:reply_tos AS text[]), CAST(:published_at AS timestamptz[]),
                      CAST(:not_after AS timestamptz[])
                    ) AS n(queue, name, id, digest, max_attempts, producer, correlation_id, reply_to,
                           published_at, not_after)
                    ON CONFLICT (queue, name, message_id) DO NOTHING
                    RETURNING key, queue, name, message_id"""),
                {
                    "worker": self._worker,
                    "queues": [arrival.message.task.queue for arrival in arrivals],
                    "names": [arrival.message.task.name for arrival in arrivals],
                    "ids": [arrival.message.task.id for arrival in arrivals],
                    "digests": [arrival.digest for arrival in arrivals],
                    "max_attempts": [arrival.max_attempts for arrival in arrivals],
                    "producers": [storable(arrival.message.app_id) for arrival in arrivals],
                    "correlation_ids": [storable(arrival.message.correlation_id) for arrival in arrivals],
                    "reply_tos": [
                        arrival.message.reply_to if arrival.keeps_reply else None for arrival in arrivals
                    ],
                    "published_at": [arrival.message.published_at for arrival in arrivals],
                    "not_after": [arrival.message.not_after for arrival in arrivals],
                },
            )
            return {TaskId(row.queue, row.name, row.message_id): row.key for row in rows}

    async def _decide(self, batch: Sequence[Coming]) -> dict[TaskId, Met]:
        """Lock the rows that are there, decide each delivery, and write it all in one transaction.

        A row that another transaction holds is left out: it is decided again.
        """
        decided: list[tuple[Coming, Decision, Task | None]] = []
        async with self._database.transaction() as connection:
            now: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
            rows = await self._lock(connection, batch)
            for coming in batch:
                task = coming.arrival.message.task
                if task not in rows:
                    continue
                row, holder = rows[task]
                decision = meet(row, coming.arrival, holder=holder, now=now, grace=self._grace)
                decided.append((coming, decision, row))
            owed, lost = await self._write_decisions(connection, decided)
        self._owed(owed)
        return {
            coming.arrival.message.task: self._remember(decision, after, coming)
            for coming, decision, after in lost
        }

    async def _write_decisions(
        self, connection: AsyncConnection, decided: Sequence[tuple[Coming, Decision, Task | None]]
    ) -> tuple[list[Owed], list[tuple[Coming, Decision, Task]]]:
        """Write every decision; answer with the rows after it, without those that lost a race."""
        steps, letters = [], []
        after_by_task: dict[TaskId, Task] = {}
        for coming, decision, row in decided:
            arrival = coming.arrival
            step = step_of_decision(decision, row, arrival, worker=self._worker)
            if step is not None:
                steps.append(step)
            if step is None or row is not None:
                after_by_task[arrival.message.task] = step.after if step else row or new_row(arrival)
            if (letter := conflict_letter(decision, row, arrival)) is not None:
                letters.append(letter)
        applied = await apply(connection, self._schema, steps, worker=self._worker)
        new = await insert_letters(connection, self._schema, letters, worker=self._worker)
        rows = [letter_row(letter, self._worker) for letter in letters if letter.id in new]
        owed = applied.owed + await insert_outbox(connection, self._schema, rows, worker=self._worker)
        after_by_task |= applied.created
        return owed, [
            (coming, decision, after_by_task[coming.arrival.message.task])
            for coming, decision, _ in decided
            if coming.arrival.message.task in after_by_task
        ]

    async def _lock(
        self, connection: AsyncConnection, batch: Sequence[Coming]
    ) -> dict[TaskId, tuple[Task | None, Holder]]:
        """Lock the rows of a batch, in one order; those that are locked elsewhere are left out."""
        tasks = [coming.arrival.message.task for coming in batch]
        identities = {
            "queues": [task.queue for task in tasks],
            "names": [task.name for task in tasks],
            "ids": [task.id for task in tasks],
        }
        wanted = """FROM unnest(CAST(:queues AS text[]), CAST(:names AS text[]), CAST(:ids AS text[]))
                      AS n(queue, name, message_id)"""
        joined = f"JOIN {self._schema}.tasks t USING (queue, name, message_id)"
        locked = await connection.execute(
            text(f"""
                SELECT {COLUMNS}, w.id IS NULL OR w.dead_at IS NOT NULL AS is_holder_dead
                {wanted} {joined} LEFT JOIN {self._schema}.workers w ON w.id = t.worker
                ORDER BY t.key FOR UPDATE OF t SKIP LOCKED"""),
            identities,
        )
        found: dict[TaskId, tuple[Task | None, Holder]] = {}
        for row in locked:
            task = to_task(row)
            found[task.id] = (task, self._holder(task, is_holder_dead=row.is_holder_dead))
        if len(found) < len(tasks):
            existing = await connection.execute(
                text(f"SELECT t.queue, t.name, t.message_id {wanted} {joined}"), identities
            )
            there = {TaskId(row.queue, row.name, row.message_id) for row in existing}
            found |= {task: (None, Holder.NOBODY) for task in tasks if task not in there}
        return found

    def _holder(self, task: Task, *, is_holder_dead: bool) -> Holder:
        if task.state is not TaskState.RUNNING:
            return Holder.NOBODY
        if task.worker == self._worker:
            return self._memory.recall(task.key, task.epoch)
        return Holder.DEAD if is_holder_dead else Holder.ELSEWHERE

    def _remember(self, decision: Decision, after: Task, coming: Coming) -> Met:
        """Tell memory before anything else can happen to this task in this process."""
        match decision:
            case Claimed() | Resumed():
                is_repeat = coming.delivery.redelivered or after.attempt > 1 or isinstance(decision, Resumed)
                claim = Claim(after, coming.arrival.message, may_be_repeat=is_repeat)
                self._memory.remember(claim, coming.delivery)
                return Met(decision, claim)
            case Adopted(epoch=epoch):
                self._memory.adopt(after.key, epoch, coming.delivery)
            case _:
                pass
        return Met(decision)

    # --- outcomes ----------------------------------------------------------------

    async def _commit_successes(self, batch: Sequence[Ending]) -> list[bool]:
        """One statement for all; its fence is the claim, its update touches no indexed column."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    WITH done AS (
                      UPDATE {self._schema}.tasks t SET state = 'succeeded', finished_at = now(),
                        result = CAST(n.result AS json), has_body = false, reason = NULL,
                        error_type = NULL, error_message = NULL
                      FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[]), CAST(:results AS text[]))
                        AS n(key, epoch, result)
                      WHERE t.key = n.key AND t.epoch = n.epoch AND t.worker = :worker
                        AND t.state = 'running'
                      RETURNING t.key
                    ), dropped AS (
                      DELETE FROM {self._schema}.payloads p USING done
                      WHERE p.task_key = done.key AND NOT CAST(:keeps AS boolean)
                    ) SELECT key FROM done"""),
                {
                    "worker": self._worker,
                    "keys": [ending.claim.key for ending in batch],
                    "epochs": [ending.claim.epoch for ending in batch],
                    "results": [_result(ending.outcome) for ending in batch],
                    "keeps": self._keeps_payloads,
                },
            )
            done = {row.key for row in rows}
            finished = [ending for ending in batch if ending.claim.key in done]
            if self._keeps_payloads:
                await self._keep_payloads(connection, finished)
            owed = await self._owe_replies(connection, finished)
            missed = [ending.claim for ending in batch if ending.claim.key not in done]
            mine = await self._written_before(connection, missed)
        self._owed(owed)
        return [ending.claim.key in done or ending.claim.key in mine for ending in batch]

    async def _commit_endings(self, batch: Sequence[Ending]) -> list[bool]:
        """Any other outcome: the row locked under its fence, then what the outcome writes."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT {COLUMNS}
                    FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[])) AS n(key, epoch)
                    JOIN {self._schema}.tasks t ON t.key = n.key AND t.epoch = n.epoch
                    WHERE t.worker = :worker AND t.state = 'running' ORDER BY t.key FOR UPDATE OF t"""),
                {
                    "worker": self._worker,
                    "keys": [ending.claim.key for ending in batch],
                    "epochs": [ending.claim.epoch for ending in batch],
                },
            )
            row_by_key = {row.key: to_task(row) for row in rows}
            steps = [
                step_of_outcome(ending.claim, ending.outcome, row_by_key[ending.claim.key])
                for ending in batch
                if ending.claim.key in row_by_key
            ]
            applied = await apply(connection, self._schema, steps, worker=self._worker)
            missed = [ending.claim for ending in batch if ending.claim.key not in row_by_key]
            mine = await self._written_before(connection, missed)
        self._owed(applied.owed)
        return [ending.claim.key in row_by_key or ending.claim.key in mine for ending in batch]

    async def _written_before(self, connection: AsyncConnection, claims: Sequence[Claim]) -> set[int]:
        """Find the claims whose outcome is there already: an earlier try whose reply was lost.

        Its row still shows our epoch and worker; after a takeover or a replay it would not.
        """
        if not claims:
            return set()
        rows = await connection.execute(
            text(f"""
                SELECT t.key FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[])) AS n(key, epoch)
                JOIN {self._schema}.tasks t ON t.key = n.key AND t.epoch = n.epoch
                WHERE t.worker = :worker AND t.state <> 'running'"""),
            {
                "worker": self._worker,
                "keys": [claim.key for claim in claims],
                "epochs": [claim.epoch for claim in claims],
            },
        )
        return {row.key for row in rows}

    async def _keep_payloads(self, connection: AsyncConnection, finished: Sequence[Ending]) -> None:
        await connection.execute(
            text(f"""
                INSERT INTO {self._schema}.payloads (task_key, body, properties)
                SELECT key, body, CAST(properties AS json) FROM unnest(
                  CAST(:keys AS bigint[]), CAST(:bodies AS bytea[]), CAST(:properties AS text[])
                ) AS n(key, body, properties) ON CONFLICT DO NOTHING"""),
            {
                "keys": [ending.claim.key for ending in finished],
                "bodies": [ending.claim.message.body for ending in finished],
                "properties": [dump_record(ending.claim.message) for ending in finished],
            },
        )

    async def _owe_replies(self, connection: AsyncConnection, finished: Sequence[Ending]) -> list[Owed]:
        rows = []
        for ending in finished:
            row = ending.claim.row
            if row.reply_to is not None:
                answer = reply_outgoing(_succeeded(row), failure=None, result=_result(ending.outcome))
                rows.append(reply_row(row.key, answer))
        return await insert_outbox(connection, self._schema, rows, worker=self._worker)


def _is_plainly_new(arrival: Arrival) -> bool:
    """Whether nothing but an existing row could keep this from being claimed at once."""
    message = arrival.message
    return (
        message.epoch == 0
        and arrival.has_slot
        and arrival.refusal is None
        and arrival.poisoning is None
        and message.deliver_at is None
        and message.not_after is None  # the database's clock decides that
    )


def _first_row(arrival: Arrival, key: int, worker: UUID) -> Task:
    message = arrival.message
    return Task(
        key=key,
        id=message.task,
        state=TaskState.RUNNING,
        attempt=1,
        max_attempts=arrival.max_attempts,
        epoch=1,
        worker=worker,
        digest=arrival.digest,
        not_after=message.not_after,
        reply_to=message.reply_to if arrival.keeps_reply else None,
        correlation_id=message.correlation_id,
    )


def _succeeded(row: Task) -> Task:
    return replace(row, state=TaskState.SUCCEEDED)


def _result(outcome: Outcome) -> str | None:
    return outcome.result if isinstance(outcome, Succeeded) else None

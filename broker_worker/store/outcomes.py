"""The end of a run: an outcome and all that it owes, in one commit, fenced by the claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.errors import StoreBusyError
from broker_worker.outcome import Outcome, Succeeded
from broker_worker.outgoing import Outgoing, Owed
from broker_worker.reply import reply_outgoing
from broker_worker.sending import Sent
from broker_worker.step import Claim, step_of_outcome
from broker_worker.store.apply import apply, insert_outbox, reply_row
from broker_worker.store.database import Database
from broker_worker.store.notices import ENDED
from broker_worker.store.postponing import Postponing
from broker_worker.store.rows import COLUMNS, dump_record, to_task
from broker_worker.store.sending import write_sent
from broker_worker.task import Task, TaskState
from broker_worker.values import dataclass


@dataclass(frozen=True, slots=True)
class Ending:
    """An outcome on its way to its row."""

    claim: Claim
    outcome: Outcome


class Successes:
    """What successes write, within a transaction of the caller's."""

    def __init__(self, schema: str, *, worker: UUID, keeps_payloads: bool) -> None:
        self._schema = schema
        self._worker = worker
        self.keeps_payloads = keeps_payloads
        self._finishing = _finishing(schema)

    async def finish(self, connection: AsyncConnection, batch: Sequence[Ending]) -> set[int]:
        """Finish the rows whose claim still holds, by one statement that touches no indexed column.

        Returns the keys.
        """
        rows = await connection.execute(self._finishing, self._parameters(batch))
        return {row[0] for row in rows}

    async def finish_alone(self, database: Database, batch: Sequence[Ending]) -> set[int]:
        """Do the same by a transaction that holds nothing else."""
        rows = await database.single(self._finishing, self._parameters(batch))
        return {row[0] for row in rows}

    def owes(self, batch: Sequence[Ending]) -> bool:
        """Whether any of these successes leaves something beside its row."""
        return self.keeps_payloads or any(
            ending.claim.row.reply_to is not None or _sent(ending.outcome) for ending in batch
        )

    def _parameters(self, batch: Sequence[Ending]) -> dict[str, object]:
        return {
            "worker": self._worker,
            "keys": [ending.claim.key for ending in batch],
            "epochs": [ending.claim.epoch for ending in batch],
            "results": [_result(ending.outcome) for ending in batch],
            "keeps": self.keeps_payloads,
        }

    async def lock_free(self, connection: AsyncConnection, batch: Sequence[Ending]) -> list[Ending]:
        """Lock the rows that no other transaction holds, and return their endings."""
        rows = await connection.execute(
            text(f"""
                SELECT key FROM {self._schema}.tasks WHERE key = ANY(CAST(:keys AS bigint[]))
                ORDER BY key FOR UPDATE SKIP LOCKED"""),
            {"keys": [ending.claim.key for ending in batch]},
        )
        free = {row.key for row in rows}
        return [ending for ending in batch if ending.claim.key in free]

    async def is_claimed(self, connection: AsyncConnection, claim: Claim) -> bool:
        """Say whether a success could be written now; takes no lock."""
        rows = await connection.execute(
            text(f"""
                SELECT 1 FROM {self._schema}.tasks
                WHERE key = :key AND epoch = :epoch AND worker = :worker AND state = 'running'"""),
            {"key": claim.key, "epoch": claim.epoch, "worker": self._worker},
        )
        return rows.first() is not None

    async def owe(self, connection: AsyncConnection, finished: Sequence[Ending]) -> list[Owed]:
        """Write what successes leave beside their rows: bodies that are kept, what was sent, replies."""
        if self.keeps_payloads:
            await self._keep_payloads(connection, finished)
        runs = [(ending.claim, _sent(ending.outcome)) for ending in finished]
        sent = await write_sent(connection, self._schema, runs, worker=self._worker)
        return sent + await self._owe_replies(connection, finished)

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
                rows.append(reply_row(row.key, success_reply(row, _result(ending.outcome))))
        return await insert_outbox(connection, self._schema, rows, worker=self._worker)


def _finishing(schema: str) -> TextClause:
    """Build the statement that ends tasks well, where their claims still hold, and tells who waits."""
    channel = schema.strip('"')
    return text(f"""
        WITH done AS (
          UPDATE {schema}.tasks t SET state = 'succeeded', finished_at = now(),
            result = CAST(n.result AS json), has_body = false, reason = NULL,
            error_type = NULL, error_message = NULL
          FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[]), CAST(:results AS text[]))
            AS n(key, epoch, result)
          WHERE t.key = n.key AND t.epoch = n.epoch AND t.worker = :worker AND t.state = 'running'
          RETURNING t.key, t.is_awaited
        ), dropped AS (
          DELETE FROM {schema}.payloads p USING done
          WHERE p.task_key = done.key AND NOT CAST(:keeps AS boolean)
        ) SELECT key, (SELECT pg_notify('{channel}', '{ENDED}' || key) WHERE is_awaited) FROM done""")


class Locked:
    """Nothing was written: another transaction holds the row. Come again."""


class Outcomes:
    """Records batches of outcomes; answers with what each row shows now, `None` where the claim is lost."""

    def __init__(
        self,
        database: Database,
        *,
        worker: UUID,
        owed: Callable[[list[Owed]], None],
        keeps_payloads: bool,
    ) -> None:
        self._database = database
        self._schema = database.schema
        self._worker = worker
        self._owed = owed
        self._successes = Successes(database.schema, worker=worker, keeps_payloads=keeps_payloads)
        self._held: set[int] = set()  # tasks whose rows other transactions held when we last looked
        self._postponing = Postponing(database, worker=worker)

    async def commit_successes(self, batch: Sequence[Ending]) -> list[Outcome | Locked | None]:
        """Finish all rows by one statement, and write what the finished ones owe.

        A row that another transaction holds holds up its batch once, for as long as a lock is waited for;
        from then on only itself.
        """
        held = [ending for ending in batch if ending.claim.key in self._held] if self._held else []
        rest = [ending for ending in batch if ending.claim.key not in self._held] if held else batch
        done: set[int] = set()
        if rest:
            try:
                done |= await self._finish(rest, leaves_held=False)
            except StoreBusyError:
                done |= await self._finish(rest, leaves_held=True)
        if held:
            done |= await self._finish(held, leaves_held=True)
        missed = [ending.claim for ending in batch if ending.claim.key not in done]
        mine: Mapping[int, TaskState] = {}
        if missed:
            async with self._database.transaction() as connection:
                mine = await self._written_before(connection, missed)
        answers = [ending.outcome if ending.claim.key in done else _shown(ending, mine) for ending in batch]
        if missed or held:
            self._held.difference_update(ending.claim.key for ending in batch)
            self._held.update(
                ending.claim.key
                for ending, answer in zip(batch, answers, strict=True)
                if isinstance(answer, Locked)
            )
        return answers

    async def _finish(self, batch: Sequence[Ending], *, leaves_held: bool) -> set[int]:
        """Finish what can be, and return the keys; without what others hold, where that is to be left."""
        if not leaves_held and not self._successes.owes(batch):
            return await self._successes.finish_alone(self._database, batch)
        async with self._database.transaction() as connection:
            free = await self._successes.lock_free(connection, batch) if leaves_held else batch
            done = await self._successes.finish(connection, free)
            owed = await self._successes.owe(connection, [each for each in batch if each.claim.key in done])
        self._owed(owed)
        return done

    async def commit_others(self, batch: Sequence[Ending]) -> list[Outcome | Locked | None]:
        """Any other outcome: a postponement by one statement, the rest with its row locked under its fence.

        A row that another transaction holds holds up nobody else: its outcome is written again.
        """
        done, owed = await self._postponing.write([(ending.claim, ending.outcome) for ending in batch])
        self._owed(owed)
        rest = [ending for ending in batch if ending.claim.key not in done]
        mine: Mapping[int, TaskState] = {}
        if rest:
            async with self._database.transaction() as connection:
                decided, owed = await self._decide(connection, rest)
                missed = [ending.claim for ending in rest if ending.claim.key not in decided]
                mine = await self._written_before(connection, missed)
            self._owed(owed)
            done |= decided
        return [ending.outcome if ending.claim.key in done else _shown(ending, mine) for ending in batch]

    async def _decide(
        self, connection: AsyncConnection, batch: Sequence[Ending]
    ) -> tuple[set[int], list[Owed]]:
        """Write what follows from each row as it is now; the keys of those whose claim still holds."""
        rows = await connection.execute(
            text(f"""
                SELECT {COLUMNS}
                FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[])) AS n(key, epoch)
                JOIN {self._schema}.tasks t ON t.key = n.key AND t.epoch = n.epoch
                WHERE t.worker = :worker AND t.state = 'running' ORDER BY t.key
                FOR UPDATE OF t SKIP LOCKED"""),
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
        return set(row_by_key), applied.owed

    async def _written_before(
        self, connection: AsyncConnection, claims: Sequence[Claim]
    ) -> dict[int, TaskState]:
        """Find the claims whose outcome is there already, and the state that it led to.

        It is of an earlier try whose reply was lost, or of the handler's own transaction. One
        that still runs is locked by another transaction.
        Its row still shows our epoch and worker; after a takeover or a replay it would not.
        """
        if not claims:
            return {}
        rows = await connection.execute(
            text(f"""
                SELECT t.key, t.state
                FROM unnest(CAST(:keys AS bigint[]), CAST(:epochs AS int[])) AS n(key, epoch)
                JOIN {self._schema}.tasks t ON t.key = n.key AND t.epoch = n.epoch
                WHERE t.worker = :worker"""),
            {
                "worker": self._worker,
                "keys": [claim.key for claim in claims],
                "epochs": [claim.epoch for claim in claims],
            },
        )
        return {row.key: TaskState(row.state) for row in rows}


def _shown(ending: Ending, before: Mapping[int, TaskState]) -> Outcome | Locked | None:
    """What the row of an ending shows that was not written now."""
    match before.get(ending.claim.key):
        case None:
            return None
        case TaskState.RUNNING:
            return Locked()
        case TaskState.SUCCEEDED:
            return Succeeded()
        case _:
            return ending.outcome


def success_reply(row: Task, result: str | None) -> Outgoing:
    """Build the answer to the publisher of a task that ends well now."""
    return reply_outgoing(replace(row, state=TaskState.SUCCEEDED), failure=None, result=result)


def _result(outcome: Outcome) -> str | None:
    return outcome.result if isinstance(outcome, Succeeded) else None


def _sent(outcome: Outcome) -> tuple[Sent, ...]:
    return outcome.sent if isinstance(outcome, Succeeded) else ()

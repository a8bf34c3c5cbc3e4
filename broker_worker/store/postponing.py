"""The narrow way of a failed attempt that another follows: one statement for a batch, where the claims hold.

It writes what `apply` would write of `step_of_outcome`, without reading the rows first. What needs a
decision on the row, or a wait in Postgres, is left to these.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import TextClause, text

from broker_worker.outcome import Outcome, Postponed
from broker_worker.outgoing import LONGEST_RUNG, Owed, copy_outgoing
from broker_worker.step import Claim
from broker_worker.store.apply import PROMPTNESS
from broker_worker.store.database import Database
from broker_worker.store.rows import dump_record


class Postponing:
    """Writes postponements, in a transaction of their own."""

    def __init__(self, database: Database, *, worker: UUID) -> None:
        self._database = database
        self._worker = worker
        self._statement = _postponing(database.schema)

    async def write(self, endings: Sequence[tuple[Claim, Outcome]]) -> tuple[set[int], list[Owed]]:
        """Answer with the keys of the rows that are postponed now, and what is owed for them.

        Rows are left out whose claim is lost, that another transaction holds, or whose end an operator wants.
        """
        postponed = [
            (claim, outcome)
            for claim, outcome in endings
            if isinstance(outcome, Postponed) and outcome.delay <= LONGEST_RUNG
        ]
        if not postponed:
            return set(), []
        claims = [claim for claim, _ in postponed]
        outcomes = [outcome for _, outcome in postponed]
        # the body of a retry is in the database already
        gained = [None if claim.row.has_body else claim.message for claim in claims]
        rows = await self._database.single(
            self._statement,
            {
                "worker": self._worker,
                "keys": [claim.key for claim in claims],
                "epochs": [claim.epoch for claim in claims],
                "reasons": [outcome.kept_reason for outcome in outcomes],
                "outcomes": [outcome.recorded_as for outcome in outcomes],
                "error_types": [outcome.failure.error_type for outcome in outcomes],
                "error_messages": [outcome.failure.message for outcome in outcomes],
                "tracebacks": [outcome.failure.traceback for outcome in outcomes],
                "delays": [outcome.delay for outcome in outcomes],
                "bodies": [message.body if message else None for message in gained],
                "properties": [dump_record(message) if message else None for message in gained],
                "promptness": PROMPTNESS,
            },
        )
        outbox_id_by_key: dict[int, int] = {row[0]: row[1] for row in rows}
        owed = [
            Owed(
                outbox_id_by_key[claim.key],
                copy_outgoing(claim.message, epoch=claim.epoch, attempt=claim.attempt, delay=outcome.delay),
            )
            for claim, outcome in postponed
            if claim.key in outbox_id_by_key
        ]
        return set(outbox_id_by_key), owed


def _postponing(schema: str) -> TextClause:
    return text(f"""
        WITH n AS (
          SELECT * FROM unnest(
            CAST(:keys AS bigint[]), CAST(:epochs AS int[]), CAST(:reasons AS text[]),
            CAST(:outcomes AS text[]), CAST(:error_types AS text[]), CAST(:error_messages AS text[]),
            CAST(:tracebacks AS text[]), CAST(:delays AS interval[]), CAST(:bodies AS bytea[]),
            CAST(:properties AS text[])
          ) AS n(key, epoch, reason, outcome, error_type, error_message, traceback, delay, body, properties)
        ), held AS (
          SELECT t.key FROM n JOIN {schema}.tasks t ON t.key = n.key AND t.epoch = n.epoch
          WHERE t.worker = :worker AND t.state = 'running' AND NOT t.is_cancel_requested
          ORDER BY t.key FOR UPDATE OF t SKIP LOCKED
        ), done AS (
          UPDATE {schema}.tasks t SET state = 'retrying', has_body = true, reason = n.reason,
            error_type = n.error_type, error_message = n.error_message, due_at = now() + n.delay
          FROM n JOIN held ON held.key = n.key WHERE t.key = n.key
          RETURNING t.key, t.queue, t.epoch, t.attempt, t.worker, t.started_at
        ), kept AS (
          INSERT INTO {schema}.payloads (task_key, body, properties)
          SELECT done.key, n.body, CAST(n.properties AS json) FROM done JOIN n ON n.key = done.key
          WHERE n.body IS NOT NULL ON CONFLICT DO NOTHING
        ), noted AS (
          INSERT INTO {schema}.attempts (task_key, epoch, attempt, worker, outcome, error_type,
                                         error_message, traceback, started_at)
          SELECT done.key, done.epoch, done.attempt, done.worker, n.outcome, n.error_type,
                 n.error_message, n.traceback, done.started_at
          FROM done JOIN n ON n.key = done.key ON CONFLICT DO NOTHING
        )
        INSERT INTO {schema}.outbox (kind, routing_key, task_key, epoch, worker, deliver_at, available_at)
        SELECT 'copy', done.queue, done.key, done.epoch, done.worker, now() + n.delay,
               now() + CAST(:promptness AS interval)
        FROM done JOIN n ON n.key = done.key RETURNING task_key, id""")

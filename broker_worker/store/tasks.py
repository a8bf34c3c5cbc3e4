"""The inbox: tasks, as the path of a delivery asks for them. Every answer is given after its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from sqlalchemy import text

from broker_worker.dead_letter import DeadLetter
from broker_worker.outcome import Outcome, Succeeded
from broker_worker.outgoing import Owed
from broker_worker.ports import Delivery, Memory
from broker_worker.step import Claim, Met
from broker_worker.store.apply import insert_letters, insert_outbox, letter_row
from broker_worker.store.arrivals import Arrivals, Coming
from broker_worker.store.database import Database
from broker_worker.store.group_commit import GroupCommit
from broker_worker.store.outcomes import Ending, Locked, Outcomes
from broker_worker.task import Arrival

LOCKED_ELSEWHERE_PAUSE = 0.05  # seconds until a row that another transaction holds is looked at again


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
        self._worker = worker
        self._owed = owed
        arrivals = Arrivals(database, worker=worker, memory=memory, owed=owed, grace=grace)
        outcomes = Outcomes(database, worker=worker, owed=owed, keeps_payloads=keeps_payloads)
        self._arrivals = GroupCommit(arrivals.commit, key=lambda item: item.arrival.message.task)
        self._successes = GroupCommit(outcomes.commit_successes, key=lambda item: item.claim.key)
        self._others = GroupCommit(outcomes.commit_others, key=lambda item: item.claim.key)

    async def run(self) -> None:
        """Commit what is written until cancelled; with one of the three gone, the others end as well."""
        async with asyncio.TaskGroup() as writers:
            running = [
                writers.create_task(commits.run())
                for commits in (self._arrivals, self._successes, self._others)
            ]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            raise RuntimeError("nothing is committed any more")

    async def settled(self) -> None:
        """Return once nothing is on its way to the database, and memory knows every claim."""
        for commits in (self._arrivals, self._successes, self._others):
            await commits.settled()

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

    async def record(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        """Commit an outcome and all it owes; `None` if the claim is lost and nothing was written.

        Answers with what the row shows now: `outcome`, or a success that was there before.
        Repeating it is safe, and how a lost reply is resolved.

        Raises:
            StoreUnavailableError: Postgres can't; whether it was written is not known.
            StoreDataError: Postgres refuses a value of this outcome.
        """
        if isinstance(outcome, Succeeded) and outcome.is_recorded:
            return outcome
        commits = self._successes if isinstance(outcome, Succeeded) else self._others
        while True:
            recorded = await commits.write(Ending(claim, outcome))
            if not isinstance(recorded, Locked):
                return recorded
            await asyncio.sleep(LOCKED_ELSEWHERE_PAUSE)

    async def is_completed(self, claim: Claim) -> bool:
        """Look whether the handler has committed its task's end in a transaction of its own.

        Raises:
            StoreUnavailableError: it can't be seen now.
        """
        async with self._database.transaction() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT 1 FROM {self._database.schema}.tasks WHERE key = :key AND epoch = :epoch
                      AND worker = :worker AND state = 'succeeded'"""),
                {"key": claim.key, "epoch": claim.epoch, "worker": self._worker},
            )
            return rows.first() is not None

    async def bury(self, letter: DeadLetter, *, is_published: bool = False) -> None:
        """Keep a message that is no task as a dead letter; `is_published`: it came as one.

        Raises:
            StoreUnavailableError: Postgres can't; whether it was written is not known.
        """
        async with self._database.transaction() as connection:
            inserted = await insert_letters(connection, self._database.schema, [letter], worker=self._worker)
            owes = inserted and letter.is_published and not is_published
            rows = [letter_row(letter, self._worker)] if owes else []
            owed = await insert_outbox(connection, self._database.schema, rows, worker=self._worker)
        self._owed(owed)

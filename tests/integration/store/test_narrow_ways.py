"""Postponements and later claims in one statement: they write what the general way writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from asyncpg import Record
from sqlalchemy import TextClause, event

from broker_worker.failure import Refusal
from broker_worker.message import Message
from broker_worker.outcome import Dead, Failure, Outcome, Postponed, Reason
from broker_worker.step import Claim
from broker_worker.store import arrivals
from broker_worker.store.checkpoints import CheckpointStore
from broker_worker.store.database import Database
from broker_worker.store.postponing import Postponing
from broker_worker.task import Arrival
from tests.support.inbox import FakeDelivery, Inbox, a_failure, a_message, opened
from tests.support.services import RunningServers, fresh_database

FAILURE = Failure("ValueError", "no", "Traceback…", "f-1")
LATER = timedelta(seconds=90)
# what differs from one run to the next, and moments, of which only their distance is a fact
ANY = {
    "worker",
    "refused_at",
    "created_at",
    "started_at",
    "ended_at",
    "failed_at",
    "due_at",
    "deliver_at",
    "available_at",
}
ROWS = {
    "tasks": """SELECT t.*, t.due_at - t.started_at > interval '80 s' AS waits,
                  t.due_at IS NULL AS is_not_due, t.started_at IS NULL AS never_started,
                  t.finished_at, t.refused_at IS NULL AS is_welcome FROM {schema}.tasks t""",
    "payloads": "SELECT * FROM {schema}.payloads",
    "attempts": "SELECT a.*, a.started_at <= a.ended_at AS lasted FROM {schema}.attempts a ORDER BY epoch",
    "outbox": """SELECT o.*, date_trunc('second', o.deliver_at - o.created_at) AS delay,
                   date_trunc('second', o.available_at - o.created_at) AS until_left FROM {schema}.outbox o
                   ORDER BY id""",
}


@dataclass
class Statements:
    """What was sent to Postgres, transactions aside."""

    seen: list[str] = field(default_factory=list)

    def about(self, table: str, verb: str) -> int:
        return sum(f'{verb} "broker_worker".{table}' in " ".join(each.split()) for each in self.seen)


@contextmanager
def watched(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Statements]:
    """Note what goes by way of SQLAlchemy, and what goes past it."""
    statements = Statements()
    single = Database.single

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.seen.append(statement)

    async def noted(
        self: Database, statement: TextClause, parameters: Mapping[str, object]
    ) -> Sequence[Record]:
        statements.seen.append(str(statement))
        return await single(self, statement, parameters)

    engine = inbox.database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Database, "single", noted)
            yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def everything(inbox: Inbox) -> Snapshot:
    """All rows of all tables that a failed attempt leaves."""
    return {
        table: [
            {name: value for name, value in row.items() if name not in ANY}
            for row in await inbox.fetch(query)
        ]
        for table, query in ROWS.items()
    }


async def nothing_is_postponed(*_: object) -> tuple[set[int], list[object]]:
    return set(), []


def go_the_general_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Postponing, "write", nothing_is_postponed)
    monkeypatch.setattr(arrivals, "may_claim_later", lambda _: False)


FIRST = Message(
    a_message("m-1").task, b'{"n": 1}', content_type="application/json", headers={"tenant-id": "t"},
    correlation_id="c-1", reply_to="answers",
)  # fmt: skip
RETRY = replace(FIRST, epoch=1)
Snapshot = Mapping[str, list[Mapping[str, Any]]]
POSTPONEMENTS: Mapping[str, Postponed] = {
    "an error": Postponed(LATER, FAILURE),
    "a timeout": Postponed(LATER, FAILURE, Reason.TIMEOUT),
    "a child's crash": Postponed(LATER, FAILURE, Reason.CRASHED),
    "at once": Postponed(timedelta(0), FAILURE),
    "beyond the last rung": Postponed(timedelta(days=2), FAILURE),
}


@pytest.fixture
def other_database_url(running_servers: RunningServers) -> Iterator[str]:
    with fresh_database(running_servers) as url:
        yield url


async def two_failures(inbox: Inbox, outcome: Outcome) -> tuple[list[Claim], list[Snapshot]]:
    """Put a task off, let it fail twice, and begin a third time; the claims, and what each step left."""
    arrival = Arrival(
        FIRST, FIRST.digest(), 3, refusal=Refusal(Reason.UNKNOWN_TASK, FAILURE), keeps_reply=True
    )
    await inbox.tasks.arrive(arrival, FakeDelivery("email"))
    claims: list[Claim] = []
    left: list[Snapshot] = []
    for epoch in (1, 2):
        claim = await inbox.claim(replace(FIRST, epoch=epoch))
        await inbox.execute("UPDATE {schema}.tasks SET progress = 0.5, progress_note = 'half'")
        left.append(await everything(inbox))
        assert await inbox.tasks.record(claim, outcome) == outcome
        left.append(await everything(inbox))
        claims.append(claim)
    claims.append(await inbox.claim(replace(FIRST, epoch=3)))
    left.append(await everything(inbox))
    return [replace(each, row=replace(each.row, worker=None)) for each in claims], left


@pytest.mark.parametrize("outcome", POSTPONEMENTS.values(), ids=POSTPONEMENTS)
async def test_the_narrow_ways_leave_the_same_rows_claims_and_debts_as_the_general_one(
    outcome: Postponed, database_url: str, other_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database_url) as inbox:
        claims, left = await two_failures(inbox, outcome)
        owed = [each.outgoing for each in inbox.owed]
    go_the_general_way(monkeypatch)
    async with opened(other_database_url) as inbox:
        assert await two_failures(inbox, outcome) == (claims, left)
        assert [each.outgoing for each in inbox.owed] == owed


async def test_the_next_attempt_finds_what_the_last_one_saved(database_url: str) -> None:
    async with opened(database_url) as inbox:
        first = await inbox.claim(FIRST)
        await CheckpointStore(inbox.database).save(first, '{"page": 7}')
        await inbox.tasks.record(first, Postponed(LATER, FAILURE))

        second = await inbox.claim(RETRY)

    assert (second.saved, second.may_be_repeat) == ('{"page": 7}', True)


async def test_the_failures_of_a_batch_take_one_statement(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database_url) as inbox:
        claims = await asyncio.gather(*(inbox.claim(a_message(f"t-{number}")) for number in range(50)))

        with watched(inbox, monkeypatch) as statements:
            await asyncio.gather(
                *(inbox.tasks.record(claim, Postponed(LATER, a_failure())) for claim in claims)
            )

    assert len(inbox.owed) == 50
    assert 1 <= len(statements.seen) <= 2  # the first comes alone, and the others meanwhile


async def test_the_dead_letters_of_a_batch_take_one_statement(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database_url) as inbox:
        claims = await asyncio.gather(*(inbox.claim(a_message(f"t-{number}")) for number in range(50)))

        with watched(inbox, monkeypatch) as statements:
            await asyncio.gather(
                *(inbox.tasks.record(claim, Dead(Reason.GAVE_UP, a_failure())) for claim in claims)
            )
        letters = await inbox.count("dead_letters")

    assert letters == 50
    assert 1 <= statements.about("dead_letters", "INSERT INTO") <= 2


async def test_one_end_that_an_operator_wants_leaves_the_rest_of_its_batch_postponed(
    database_url: str,
) -> None:
    async with opened(database_url) as inbox:
        claims = await asyncio.gather(*(inbox.claim(a_message(f"t-{number}")) for number in range(20)))
        await inbox.execute(
            "UPDATE {schema}.tasks SET is_cancel_requested = true WHERE key = :key", key=claims[7].key
        )

        await asyncio.gather(*(inbox.tasks.record(claim, Postponed(LATER, FAILURE)) for claim in claims))
        states = await inbox.fetch("SELECT state, count(*) AS n FROM {schema}.tasks GROUP BY 1 ORDER BY 1")

    assert states == [{"state": "cancelled", "n": 1}, {"state": "retrying", "n": 19}]
    assert len(inbox.owed) == 19

"""Retention: what is over is deleted, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from broker_worker.outcome import Cancelled, Dead, Outcome, Postponed, Reason, Succeeded
from broker_worker.store import pruning
from broker_worker.store.checkpoints import CheckpointStore
from broker_worker.store.dead_letters import Desk, Selection
from broker_worker.store.pruning import PruningStore
from tests.support.inbox import Inbox, a_failure, a_message, opened

WEEK = timedelta(days=7)
QUARTER = timedelta(days=90)


async def prune(inbox: Inbox) -> int:
    """Walk over everything once, as a new process does."""
    store = PruningStore(inbox.database)
    count = (await store.prune_succeeded(older_than=WEEK)).count
    is_more = True
    while is_more:
        pruned = await store.prune_others(older_than=QUARTER)
        count, is_more = count + pruned.count, pruned.is_more
    return count


async def test_a_succeeded_task_goes_after_its_time_and_takes_its_attempts_along(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.succeed(a_message("old"))
        await inbox.execute(
            "INSERT INTO {schema}.attempts (task_key, epoch, attempt, outcome) VALUES (:key, 0, 1, 'x')",
            key=claim.key,
        )
        await inbox.age(8, key=claim.key)
        young = await inbox.succeed(a_message("young"))
        await inbox.age(6, key=young.key)

        count = await prune(inbox)

        assert count == 1
        assert [row["message_id"] for row in await inbox.fetch("SELECT * FROM {schema}.tasks")] == ["young"]
        assert await inbox.count("attempts") == 0


async def test_other_ends_are_kept_for_their_own_time(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        for id_, days in (("old", 91), ("young", 89)):
            claim = await inbox.die(a_message(id_))
            await inbox.age(days, key=claim.key)
        async for letter in desk.select(Selection()):
            await desk.discard(letter, actor="ada")

        await prune(inbox)

        assert [row["message_id"] for row in await inbox.fetch("SELECT * FROM {schema}.tasks")] == ["young"]


async def test_a_task_with_an_open_dead_letter_is_never_pruned(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.die(a_message())
        await inbox.age(1000, key=claim.key)

        assert await prune(inbox) == 0


async def test_a_discarded_letter_outlives_its_task(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.die(a_message())
        await inbox.age(1000, key=claim.key)
        desk = Desk(inbox.database)
        [letter] = await desk.list_letters(Selection())
        await desk.discard(letter.id, actor="ada")

        assert await prune(inbox) == 1
        [kept] = await desk.list_letters(Selection(), with_resolved=True)
        assert (kept.id, kept.task_key) == (letter.id, None)


async def test_an_unfinished_task_is_never_pruned(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claims = [await inbox.postpone(a_message("waits")), await inbox.claim(a_message("runs"))]
        for claim in claims:
            await inbox.age(1000, key=claim.key)

        assert await prune(inbox) == 0


async def test_a_task_that_still_owes_a_message_is_not_pruned(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.succeed(a_message(reply_to="answers"))
        await inbox.age(1000, key=claim.key)

        assert await prune(inbox) == 0
        assert await inbox.count("outbox") == 1


async def test_a_walk_goes_on_where_it_stopped_and_the_next_one_where_it_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WINDOW", 2)
    async with opened(database_url) as inbox:
        for number in range(5):
            claim = await inbox.succeed(a_message(f"t-{number}"))
            await inbox.age(8, key=claim.key)
        store = PruningStore(inbox.database)

        turns = [await store.prune_succeeded(older_than=WEEK) for _ in range(4)]

        assert [(turn.count, turn.is_more) for turn in turns] == [
            (2, True),
            (2, True),
            (1, False),
            (0, False),
        ]


async def test_a_walk_ends_at_what_is_too_young(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "WINDOW", 2)
    async with opened(database_url) as inbox:
        for number in range(5):
            await inbox.succeed(a_message(f"t-{number}"))
        store = PruningStore(inbox.database)

        turn = await store.prune_succeeded(older_than=WEEK)

        assert not turn.is_more


async def test_what_a_walk_passed_by_is_deleted_by_the_next_thorough_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WINDOW", 1)
    monkeypatch.setattr(pruning, "THOROUGH", 2)
    async with opened(database_url) as inbox:
        late = await inbox.claim(a_message("late"))
        await inbox.age(20, key=late.key)
        for id_, days in (("old", 8), ("young", 1)):
            claim = await inbox.succeed(a_message(id_))
            await inbox.age(days, key=claim.key)
        store = PruningStore(inbox.database)
        first = [await store.prune_succeeded(older_than=WEEK) for _ in range(3)]
        await inbox.tasks.record(late, Succeeded())
        await inbox.age(8, key=late.key)

        second, third = [await store.prune_succeeded(older_than=WEEK) for _ in range(2)]

        assert [turn.count for turn in first] == [0, 1, 0]
        assert (second.count, second.is_more) == (0, False)  # goes on behind it
        assert third.count == 1


async def test_other_ends_are_walked_one_state_after_the_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WINDOW", 2)
    async with opened(database_url) as inbox:
        for number in range(5):
            claim = await inbox.finish(a_message(f"t-{number}"), Cancelled())
            await inbox.age(91, key=claim.key)
        store = PruningStore(inbox.database)

        turns = [await store.prune_others(older_than=QUARTER) for _ in range(5)]

        assert [(turn.count, turn.is_more) for turn in turns] == [
            (0, True),  # dead
            (2, True),
            (2, True),
            (1, True),
            (0, False),  # expired
        ]


async def test_a_row_that_somebody_holds_is_left_for_the_next_walk(database_url: str) -> None:
    async with opened(database_url) as inbox:
        for number in range(2):
            claim = await inbox.succeed(a_message(f"t-{number}"))
            await inbox.age(8, key=claim.key)
        async with inbox.database.transaction() as holder:
            await holder.exec_driver_sql(
                f"SELECT 1 FROM {inbox.database.schema}.tasks WHERE key = 1 FOR UPDATE"
            )

            during = await prune(inbox)
        after = await prune(inbox)

        assert (during, after) == (1, 1)


async def test_bodies_of_finished_tasks_go_and_those_of_others_stay(database_url: str) -> None:
    async with opened(database_url) as inbox:
        done = await inbox.succeed(a_message("done"))
        waiting = await inbox.postpone(a_message("waiting"))
        await inbox.execute(
            "INSERT INTO {schema}.payloads (task_key, body, properties) VALUES (:key, '', '{{}}')",
            key=done.key,
        )

        pruned = await PruningStore(inbox.database).prune_payloads()

        assert pruned.count == 1
        assert [row["task_key"] for row in await inbox.fetch("SELECT * FROM {schema}.payloads")] == [
            waiting.key
        ]


async def test_checkpoints_go_with_tasks_that_will_not_run_again(database_url: str) -> None:
    async with opened(database_url) as inbox:
        store = CheckpointStore(inbox.database)
        outcomes: dict[str, Outcome] = {
            "succeeded": Succeeded(),
            "cancelled": Cancelled(),
            "dead": Dead(Reason.GAVE_UP, a_failure()),
            "waiting": Postponed(timedelta(0), a_failure()),
        }
        for id_, outcome in outcomes.items():
            claim = await inbox.claim(a_message(id_))
            await store.save(claim, "1")
            await inbox.tasks.record(claim, outcome)
        await store.save(await inbox.claim(a_message("running")), "1")

        pruned = await PruningStore(inbox.database).prune_checkpoints()

        assert (pruned.count, pruned.is_more) == (2, False)
        left = await inbox.fetch("""
            SELECT message_id FROM {schema}.tasks JOIN {schema}.checkpoints ON task_key = key ORDER BY key""")
        assert [row["message_id"] for row in left] == ["dead", "waiting", "running"]


async def test_a_walk_of_checkpoints_goes_on_where_it_stopped(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WINDOW", 2)
    async with opened(database_url) as inbox:
        claims = [await inbox.claim(a_message(f"t-{number}")) for number in range(3)]
        for claim in claims:
            await CheckpointStore(inbox.database).save(claim, "1")
        await inbox.tasks.record(claims[-1], Succeeded())
        store = PruningStore(inbox.database)

        turns = [await store.prune_checkpoints() for _ in range(3)]

        assert [(turn.count, turn.is_more) for turn in turns] == [(0, True), (1, False), (0, True)]


async def test_a_checkpoint_goes_with_its_task(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.claim(a_message())
        await CheckpointStore(inbox.database).save(claim, "1")
        await inbox.tasks.record(claim, Succeeded())
        await inbox.age(8, key=claim.key)

        await prune(inbox)

        assert await inbox.count("checkpoints") == 0


async def test_only_answered_letters_go_and_only_after_their_time(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        for id_ in ("open", "old", "young"):
            await inbox.die(a_message(id_))
        young, old, _ = await desk.list_letters(Selection())
        for letter in (young, old):
            await desk.discard(letter.id, actor="ada")
        await inbox.execute(
            "UPDATE {schema}.dead_letters SET resolved_at = now() - interval '8 d' WHERE id = :id", id=old.id
        )

        pruned = await PruningStore(inbox.database).prune_letters(older_than=WEEK)

        assert pruned.count == 1
        left = await desk.list_letters(Selection(), with_resolved=True)
        assert [letter.message_id for letter in left] == ["young", "open"]


async def test_a_replayed_letter_stays_until_its_copy_is_sent(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message(body=b"1"))
        await inbox.arrive(a_message(body=b"2"))
        await inbox.confirm_everything()
        await inbox.execute("DELETE FROM {schema}.tasks")
        desk = Desk(inbox.database)
        [letter] = await desk.list_letters(Selection())
        await desk.replay(letter.id, actor="ada")
        await inbox.execute("UPDATE {schema}.dead_letters SET resolved_at = now() - interval '8 d'")
        store = PruningStore(inbox.database)

        before = await store.prune_letters(older_than=WEEK)
        await inbox.confirm_everything()
        after = await store.prune_letters(older_than=WEEK)

        assert (before.count, after.count) == (0, 1)


async def test_workers_that_died_long_ago_go_unless_a_task_still_runs_under_them(database_url: str) -> None:
    async with opened(database_url) as inbox:
        forgotten, needed = uuid4(), uuid4()
        for worker in (forgotten, needed):
            await inbox.execute(
                """INSERT INTO {schema}.workers (id, name, release, dead_at, swept_at)
                   VALUES (:id, 'w', '0', now() - interval '8 d', now())""",
                id=worker,
            )
        claim = await inbox.claim(a_message())
        await inbox.execute(
            "UPDATE {schema}.tasks SET worker = :worker, has_body = true WHERE key = :key",
            worker=needed,
            key=claim.key,
        )

        pruned = await PruningStore(inbox.database).prune_workers()

        assert pruned.count == 1
        left = {row["id"] for row in await inbox.fetch("SELECT id FROM {schema}.workers")}
        assert left == {needed, inbox.worker}

"""What attempts leave for the next, the same in memory and in Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, text

from broker_worker.errors import ClaimLostError, StoreDataError
from broker_worker.message import Message, TaskId
from broker_worker.outcome import Dead, Failure, Postponed, Reason, Released, Succeeded
from broker_worker.step import Claim
from broker_worker.store.database import Database
from broker_worker.store.dead_letters import Desk, Selection
from broker_worker.task import Lane
from tests.support.attempts import checkpoints_of
from tests.support.worlds import SCHEMA, PostgresWorld, Worker, World

TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(TASK, b'{"to": 1}')
FAILED = Postponed(timedelta(0), Failure("ValueError", "no"))


async def claim_next(world: World, worker: Worker, **how: object) -> Claim:
    """Claim the task by its current copy."""
    return await worker.claim(replace(MESSAGE, epoch=(await world.row(TASK)).epoch), **how)


async def test_the_first_attempt_begins_with_nothing(world: World) -> None:
    worker = await world.join()

    claim = await worker.claim(MESSAGE)

    assert claim.saved is None


@pytest.mark.parametrize("outcome", [FAILED, Released()], ids=["failed", "released"])
async def test_the_next_attempt_begins_with_the_last_that_was_saved(
    world: World, outcome: Postponed | Released
) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    for state in ('{"page": 1}', '{"page": 2}'):
        await checkpoints_of(world, worker).save(claim, state)
    await worker.record(claim, outcome)

    following = await claim_next(world, worker)

    assert following.saved == '{"page": 2}'


async def test_a_takeover_begins_with_what_the_dead_worker_saved(world: World) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE, lane=Lane.HELD)
    await checkpoints_of(world, worker).save(claim, '"half"')
    await world.kill(worker)

    taken_over = await other.claim(MESSAGE, lane=Lane.HELD)

    assert (taken_over.attempt, taken_over.saved) == (2, '"half"')


async def test_a_text_and_a_null_come_back_as_they_were_written(world: World) -> None:
    worker = await world.join()
    for state in ('"null"', "null", "[1, 2.50]", '"\\u0000"'):
        claim = await claim_next(world, worker) if await world.find(TASK) else await worker.claim(MESSAGE)
        await checkpoints_of(world, worker).save(claim, state)
        await worker.record(claim, Released())

        following = await claim_next(world, worker)
        await worker.record(following, Released())

        assert following.saved == state


async def test_attempts_that_saved_nothing_keep_what_is_there(world: World) -> None:
    worker = await world.join()
    claim = await worker.claim(MESSAGE)
    await checkpoints_of(world, worker).save(claim, "1")
    await worker.record(claim, FAILED)
    await worker.record(await claim_next(world, worker), FAILED)

    third = await claim_next(world, worker)

    assert (third.attempt, third.saved) == (3, "1")


async def test_an_attempt_that_lost_its_claim_saves_nothing(world: World) -> None:
    worker, other = await world.join(), await world.join()
    claim = await worker.claim(MESSAGE, lane=Lane.HELD)
    await world.kill(worker)
    taken_over = await other.claim(MESSAGE, lane=Lane.HELD)
    await checkpoints_of(world, other).save(taken_over, "2")

    with pytest.raises(ClaimLostError):
        await checkpoints_of(world, worker).save(claim, "1")

    await other.record(taken_over, FAILED)
    assert (await claim_next(world, other)).saved == "2"


async def test_an_attempt_that_has_ended_saves_nothing(world: World) -> None:
    worker = await world.join()
    claim = await worker.finish(MESSAGE, Succeeded("1"))

    with pytest.raises(ClaimLostError):
        await checkpoints_of(world, worker).save(claim, "1")


async def test_each_task_of_a_batch_has_its_own(world: World) -> None:
    worker = await world.join()
    messages = [replace(MESSAGE, task=TASK._replace(id=f"m-{number}")) for number in range(5)]
    for number, message in enumerate(messages):
        claim = await worker.claim(message)
        if number != 3:
            await checkpoints_of(world, worker).save(claim, str(number))
        await worker.record(claim, FAILED)

    claims = await asyncio.gather(*(worker.claim(replace(message, epoch=1)) for message in messages))

    assert [claim.saved for claim in claims] == ["0", "1", "2", None, "4"]


# --- in Postgres -----------------------------------------------------------------


async def test_a_replayed_task_begins_with_what_it_had_saved(postgres: PostgresWorld) -> None:
    worker = await postgres.join()
    claim = await worker.claim(MESSAGE)
    await checkpoints_of(postgres, worker).save(claim, "7")
    await worker.record(claim, Dead(Reason.GAVE_UP, Failure("ValueError", "no")))
    [letter] = await Desk(postgres.admin).list_letters(Selection())
    await Desk(postgres.admin).replay(letter.id, actor="ada")

    replayed = await claim_next(postgres, worker)

    assert (replayed.attempt, replayed.saved) == (1, "7")


async def test_what_is_no_json_is_refused(postgres: PostgresWorld) -> None:
    worker = await postgres.join()
    claim = await worker.claim(MESSAGE)

    with pytest.raises(StoreDataError):
        await checkpoints_of(postgres, worker).save(claim, "{")


async def test_new_tasks_are_claimed_without_a_look_at_checkpoints(postgres: PostgresWorld) -> None:
    worker = await postgres.join()
    statements: list[str] = []
    engine = worker.losing._engine.sync_engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *about: statements.append(about[2]))

    await worker.claim(MESSAGE)
    in_time = datetime.now(UTC) + timedelta(hours=1)  # which is decided under the row's lock
    await worker.claim(replace(MESSAGE, task=TASK._replace(id="m-2"), not_after=in_time))

    assert statements != []
    assert not any("checkpoints" in statement for statement in statements)


async def test_a_save_that_meets_a_takeover_halfway_waits_for_it_and_is_refused(
    postgres: PostgresWorld,
) -> None:
    worker, other = await postgres.join(), await postgres.join()
    claim = await worker.claim(MESSAGE)

    async with asyncio.TaskGroup() as group, postgres.admin.transaction() as takeover:
        await takeover.execute(
            text(f"UPDATE {SCHEMA}.tasks SET epoch = 2, worker = :other"), {"other": other.id}
        )
        saving = group.create_task(refused(postgres, worker, claim))
        await _waiting_for_a_lock(postgres)

    assert saving.result()


async def refused(world: World, worker: Worker, claim: Claim) -> bool:
    """Whether a checkpoint is refused because the claim is lost."""
    try:
        await checkpoints_of(world, worker).save(claim, "1")
    except ClaimLostError:
        return True
    return False


async def _waiting_for_a_lock(world: PostgresWorld) -> None:
    """Return once a connection to this database waits for another's lock."""
    waiting = text("""
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'""")
    lookout = Database.open(lambda: world.url, schema=SCHEMA, pool_size=1)
    world.cleanup.push_async_callback(lookout.close)
    while True:
        async with lookout.transaction() as connection:
            if (await connection.execute(waiting)).scalar_one():
                return
        await asyncio.sleep(0.01)

"""How far attempts are, the same in memory and in Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text

from broker_worker.message import Message, TaskId
from broker_worker.outcome import Released, Succeeded
from broker_worker.services.progress import ProgressWriter
from broker_worker.task import Lane, TaskState
from tests.support.attempts import progress_of, reports_of
from tests.support.worlds import SCHEMA, PostgresWorld, World

TASK = TaskId("email", "email.send", "m-1")
MESSAGE = Message(TASK, b'{"to": 1}')


def numbered(number: int) -> Message:
    return replace(MESSAGE, task=TASK._replace(id=f"m-{number}"))


async def test_an_attempt_that_has_said_nothing_has_no_progress(world: World) -> None:
    worker = await world.join()
    await worker.claim(MESSAGE)

    assert await progress_of(world, TASK) == (None, None)


async def test_the_newest_report_of_each_attempt_is_written(world: World) -> None:
    worker = await world.join()
    writer = ProgressWriter(reports_of(world, worker))
    for number in range(3):
        claim = await worker.claim(numbered(number))
        writer.report(claim, 0.25, "begun")
        writer.report(claim, 0.5 + number / 4, f"page {number}")

    await writer.run_once()

    shown = [await progress_of(world, numbered(number).task) for number in range(3)]
    assert shown == [(0.5, "page 0"), (0.75, "page 1"), (1.0, "page 2")]


async def test_a_report_without_a_note_takes_the_one_before_away(world: World) -> None:
    worker = await world.join()
    writer = ProgressWriter(reports_of(world, worker))
    claim = await worker.claim(MESSAGE)
    writer.report(claim, 0.5, "half")
    await writer.run_once()
    writer.report(claim, 0.5, "")

    await writer.run_once()

    assert await progress_of(world, TASK) == (0.5, None)


async def test_a_report_changes_nothing_but_the_progress(world: World) -> None:
    worker = await world.join()
    writer = ProgressWriter(reports_of(world, worker))
    claim = await worker.claim(MESSAGE)
    writer.report(claim, 0.5, "half")

    await writer.run_once()

    assert await world.row(TASK) == claim.row


async def test_what_is_left_at_the_end_of_an_attempt_is_dropped(world: World) -> None:
    worker = await world.join()
    writer = ProgressWriter(reports_of(world, worker))
    claim = await worker.claim(MESSAGE)
    writer.report(claim, 0.5, "half")
    await writer.run_once()
    writer.report(claim, 0.9, "nearly")
    await worker.record(claim, Succeeded("1"))

    await writer.run_once()

    assert await progress_of(world, TASK) == (0.5, "half")
    assert (await world.row(TASK)).state is TaskState.SUCCEEDED


async def test_a_report_of_the_attempt_before_is_not_taken_for_one_of_the_next(world: World) -> None:
    worker = await world.join()
    writer = ProgressWriter(reports_of(world, worker))
    claim = await worker.claim(MESSAGE)
    writer.report(claim, 0.9, "nearly")
    await worker.record(claim, Released())
    await worker.claim(replace(MESSAGE, epoch=1))

    await writer.run_once()

    assert await progress_of(world, TASK) == (None, None)


async def test_an_attempt_that_lost_its_claim_is_not_heard(world: World) -> None:
    worker, other = await world.join(), await world.join()
    lost = await worker.claim(MESSAGE, lane=Lane.HELD)
    await world.kill(worker)
    kept = await other.claim(MESSAGE, lane=Lane.HELD)
    mine, others = ProgressWriter(reports_of(world, worker)), ProgressWriter(reports_of(world, other))
    others.report(kept, 0.25, "anew")
    mine.report(lost, 0.75, "old")

    await others.run_once()
    await mine.run_once()

    assert await progress_of(world, TASK) == (0.25, "anew")


# --- in Postgres -----------------------------------------------------------------


async def test_a_row_that_somebody_holds_is_left_out_and_nobody_waits(postgres: PostgresWorld) -> None:
    worker = await postgres.join()
    writer = ProgressWriter(reports_of(postgres, worker))
    for number in (1, 2):
        writer.report(await worker.claim(numbered(number)), 0.5, "half")
    async with postgres.admin.transaction() as holder:
        await holder.execute(
            text(f"SELECT 1 FROM {SCHEMA}.tasks WHERE message_id = :id FOR UPDATE"), {"id": TASK.id}
        )

        async with asyncio.timeout(5):  # less than a lock is waited for
            await writer.run_once()

    shown = [await progress_of(postgres, numbered(number).task) for number in (1, 2)]
    assert shown == [(None, None), (0.5, "half")]


@pytest.mark.parametrize(("reports", "writes"), [((0.5, 0.5), 1), ((0.25, 0.5), 2)], ids=["same", "other"])
async def test_what_the_row_says_already_is_not_written_again(
    postgres: PostgresWorld, reports: tuple[float, float], writes: int
) -> None:
    worker = await postgres.join()
    writer = ProgressWriter(reports_of(postgres, worker))
    claim = await worker.claim(MESSAGE)
    versions = {await version(postgres)}

    for fraction in reports:
        writer.report(claim, fraction, "")
        await writer.run_once()
        versions.add(await version(postgres))

    assert len(versions) == 1 + writes


async def test_no_index_knows_of_the_progress_so_that_an_update_stays_in_its_page(
    postgres: PostgresWorld,
) -> None:
    async with postgres.admin.transaction() as connection:
        found = await connection.execute(
            text(f"""
                SELECT a.attname FROM pg_depend d
                JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'i'
                JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                WHERE d.refobjid = CAST('{SCHEMA}.tasks' AS regclass)""")
        )
        indexed = {row.attname for row in found}

    assert {"worker", "has_body", "due_at"} <= indexed  # by what their conditions ask for, too
    assert not indexed & {"progress", "progress_note"}


async def version(world: PostgresWorld) -> str:
    """Where the only task's row lies: an update puts it elsewhere."""
    async with world.admin.transaction() as connection:
        found = await connection.execute(text(f"SELECT CAST(ctid AS text) FROM {SCHEMA}.tasks"))
        return str(found.scalar_one())

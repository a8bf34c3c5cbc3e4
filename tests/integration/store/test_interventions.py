"""What an operator does to one task."""

from __future__ import annotations

import asyncio

import pytest

from broker_worker.outcome import Succeeded
from broker_worker.ports import CANCEL_NOTICE, Report
from broker_worker.store.checkpoints import CheckpointStore
from broker_worker.store.dead_letters import Desk, Selection
from broker_worker.store.interventions import (
    AmbiguousTaskError,
    NoSuchTaskError,
    cancel_task,
    erase_task,
)
from broker_worker.store.notices import Listener
from broker_worker.store.progress import ProgressStore
from broker_worker.store.queries import TaskLookup, show_task
from tests.support.inbox import a_failure, a_message, opened

THE_TASK = TaskLookup("t-1")


async def test_a_waiting_task_is_cancelled_at_once(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.postpone(a_message())

        verdict = await cancel_task(inbox.database, THE_TASK, actor="ada")

        assert verdict.is_done
        [row] = await inbox.fetch("SELECT state, has_body FROM {schema}.tasks")
        assert row == {"state": "cancelled", "has_body": False}
        assert await inbox.relay() == []  # its copy is stale


async def test_a_running_task_is_asked_to_stop(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.claim(a_message())

        verdict = await cancel_task(inbox.database, THE_TASK, actor="ada")

        assert (verdict.is_done, verdict.detail) == (True, "its worker is asked to stop")
        [row] = await inbox.fetch("SELECT state, is_cancel_requested FROM {schema}.tasks")
        assert row == {"state": "running", "is_cancel_requested": True}


async def test_a_running_tasks_worker_hears_of_the_cancel_with_its_commit(database_url: str) -> None:
    heard: list[str] = []
    connects, hears = asyncio.Event(), asyncio.Event()

    def hear(payload: str) -> None:
        (hears if payload else connects).set()
        heard.append(payload)

    listener = Listener(
        lambda: database_url, schema="broker_worker", on_notice=hear, on_change=lambda _, __: None
    )
    async with opened(database_url) as inbox, asyncio.TaskGroup() as group:
        listening = group.create_task(listener.run())
        await connects.wait()
        await inbox.postpone(a_message("waits"))
        claim = await inbox.claim(a_message("runs"))
        for id_ in ("waits", "runs"):
            await cancel_task(inbox.database, TaskLookup(id_), actor="ada")
        await hears.wait()
        listening.cancel()

    assert heard == ["", f"{CANCEL_NOTICE}{claim.key}"]


async def test_asking_twice_is_asking_once(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.claim(a_message())
        await cancel_task(inbox.database, THE_TASK, actor="ada")

        verdict = await cancel_task(inbox.database, THE_TASK, actor="ada")

        assert verdict.detail == "its worker is asked already"
        assert await inbox.count("audit") == 1


async def test_a_finished_task_is_not_cancelled(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message())

        verdict = await cancel_task(inbox.database, THE_TASK, actor="ada")

        assert (verdict.is_done, verdict.detail) == (False, "it has succeeded already")


async def test_a_cancelled_task_answers_whoever_wanted_an_answer(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.postpone(a_message(reply_to="answers"))
        await cancel_task(inbox.database, THE_TASK, actor="ada")

        [owed] = await inbox.relay()

        assert owed.outgoing.routing_key == "answers"
        assert b'"cancelled"' in owed.outgoing.body


async def test_a_task_that_is_not_there_is_said_to_be_so(database_url: str) -> None:
    async with opened(database_url) as inbox:
        with pytest.raises(NoSuchTaskError, match="no task with id 't-1' in queue 'email'"):
            await cancel_task(inbox.database, TaskLookup("t-1", queue="email"), actor="ada")


async def test_an_id_of_several_tasks_needs_more_to_name_one(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.postpone(a_message(queue="email"))
        await inbox.postpone(a_message(queue="reports"))

        with pytest.raises(AmbiguousTaskError, match=r"queue email .* queue reports"):
            await cancel_task(inbox.database, THE_TASK, actor="ada")
        verdict = await cancel_task(inbox.database, TaskLookup("t-1", queue="reports"), actor="ada")

        assert verdict.is_done


async def test_an_erased_task_keeps_nothing_but_its_history(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message(body=b'{"name": "Ada"}', correlation_id="ada"), a_failure("Ada"))

        verdict = await erase_task(inbox.database, THE_TASK, actor="ada")

        assert verdict.is_done
        [detail] = await show_task(inbox.database, THE_TASK)
        assert (detail.task.state, detail.task.error_type) == ("dead", "ValueError")
        assert (detail.task.error_message, detail.task.correlation_id) == (None, None)
        assert [(each.error_message, each.traceback) for each in detail.attempts] == [(None, None)]
        [letter] = await Desk(inbox.database).list_letters(Selection(), with_resolved=True)
        assert (letter.body_bytes, letter.error_message, letter.resolution) == (0, "", "discarded")


async def test_erasing_takes_the_checkpoint_and_the_note_of_the_progress_along(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.claim(a_message())
        await CheckpointStore(inbox.database).save(claim, '"Ada"')
        report = Report(claim.key, claim.epoch, 0.5, "Ada")
        await ProgressStore(inbox.database, worker=inbox.worker).write([report])
        await inbox.tasks.record(claim, Succeeded())

        await erase_task(inbox.database, THE_TASK, actor="ada")

        assert await inbox.count("checkpoints") == 0
        [detail] = await show_task(inbox.database, THE_TASK)
        assert (detail.task.progress, detail.task.progress_note) == (0.5, None)


async def test_erasing_takes_the_result_along(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message(), '{"name": "Ada"}')

        await erase_task(inbox.database, THE_TASK, actor="ada")

        [detail] = await show_task(inbox.database, THE_TASK)
        assert detail.result is None


async def test_erasing_takes_along_what_conflicted_with_the_task(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message(body=b"1"))
        await inbox.arrive(a_message(body=b'{"name": "Ada"}'))
        await inbox.confirm_everything()

        await erase_task(inbox.database, THE_TASK, actor="ada")

        [row] = await inbox.fetch("SELECT body, properties::text AS properties FROM {schema}.dead_letters")
        assert row == {"body": b"", "properties": "{}"}


async def test_an_erased_task_still_knows_its_duplicates(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message())
        await erase_task(inbox.database, THE_TASK, actor="ada")

        met = await inbox.arrive(a_message())

        assert met.claim is None
        assert await inbox.count("dead_letters") == 0


async def test_an_unfinished_task_is_not_erased(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.postpone(a_message())

        verdict = await erase_task(inbox.database, THE_TASK, actor="ada")

        assert not verdict.is_done
        assert "cancel it first" in verdict.detail
        assert await inbox.count("payloads") == 1


async def test_a_task_that_still_owes_a_message_is_not_erased(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message(reply_to="answers"), '"Ada"')

        verdict = await erase_task(inbox.database, THE_TASK, actor="ada")

        assert not verdict.is_done
        assert "still on its way" in verdict.detail


async def test_who_cancelled_and_erased_is_written_down(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.postpone(a_message())
        await cancel_task(inbox.database, THE_TASK, actor="ada")
        await inbox.confirm_everything()
        await erase_task(inbox.database, THE_TASK, actor="bob")

        entries = await inbox.fetch(
            "SELECT actor, action, detail->>'id' AS id FROM {schema}.audit ORDER BY id"
        )

        assert [(each["actor"], each["action"], each["id"]) for each in entries] == [
            ("ada", "cancel", "t-1"),
            ("bob", "erase", "t-1"),
        ]

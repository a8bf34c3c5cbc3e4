"""Tasks as people look at them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from broker_worker.outcome import Cancelled, Reason
from broker_worker.store import listing, statistics
from broker_worker.store.listing import TaskFilter, list_tasks
from broker_worker.store.queries import TaskLookup, show_task
from broker_worker.store.statistics import open_letters, outbox_gauge, stats
from tests.support.inbox import Inbox, a_failure, a_message, opened

EVERYTHING = TaskFilter()


async def some_tasks(inbox: Inbox, count: int) -> None:
    for number in range(count):
        await inbox.succeed(a_message(f"t-{number}"))


async def test_tasks_are_listed_newest_first_in_pages_that_meet(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await some_tasks(inbox, 5)

        first = await list_tasks(inbox.database, EVERYTHING, limit=3)
        rest = await list_tasks(inbox.database, EVERYTHING, limit=3, before_key=first.before_key)

        assert [task.id for task in first.tasks + rest.tasks] == ["t-4", "t-3", "t-2", "t-1", "t-0"]
        assert rest.before_key is None


async def test_a_filter_fits_by_all_that_it_names(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message("t-1"))
        await inbox.die(a_message("t-2"))
        await inbox.die(a_message("t-3", queue="reports"))

        page = await list_tasks(inbox.database, TaskFilter(state="dead", queue="email", name="email.send"))

        assert [task.id for task in page.tasks] == ["t-2"]


async def test_a_task_is_found_by_its_id_in_any_queue_under_any_name(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await some_tasks(inbox, 3)
        await inbox.succeed(a_message("t-1", queue="reports", name="report.make"))
        await inbox.succeed(a_message("t-9", queue="zoo", name="a"))

        page = await list_tasks(inbox.database, TaskFilter(message_id="t-1"))

        assert [(task.queue, task.name) for task in page.tasks] == [
            ("reports", "report.make"),
            ("email", "email.send"),
        ]


async def test_tasks_are_found_by_when_they_were_created(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claims = [await inbox.succeed(a_message(f"t-{number}")) for number in range(6)]
        for days, claim in zip(range(6, 0, -1), claims, strict=True):
            await inbox.age(days, key=claim.key)
        now = datetime.now(UTC)

        page = await list_tasks(
            inbox.database,
            TaskFilter(since=now - timedelta(days=4, hours=1), until=now - timedelta(days=2, hours=1)),
        )

        assert [task.id for task in page.tasks] == ["t-3", "t-2"]


async def test_a_page_that_looked_at_enough_rows_says_where_to_go_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_WALK", 2)
    async with opened(database_url) as inbox:
        await inbox.claim(a_message("runs"))
        await some_tasks(inbox, 3)
        running = TaskFilter(state="running")

        first = await list_tasks(inbox.database, running)
        second = await list_tasks(inbox.database, running, before_key=first.before_key)

        assert (first.tasks, [task.id for task in second.tasks]) == ([], ["runs"])
        assert second.before_key is None


@pytest.mark.parametrize("state", ["dead", "cancelled", "retrying"])
async def test_a_state_that_is_neither_running_nor_succeeded_is_found_however_old(
    database_url: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(listing, "MAX_WALK", 1)
    async with opened(database_url) as inbox:
        await inbox.die(a_message("dead"))
        await inbox.finish(a_message("cancelled"), Cancelled())
        await inbox.postpone(a_message("retrying"))
        await some_tasks(inbox, 3)

        page = await list_tasks(inbox.database, TaskFilter(state=state))

        assert ([task.id for task in page.tasks], page.before_key) == ([state], None)


async def test_a_state_is_listed_within_times_and_in_pages(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claims = [await inbox.die(a_message(f"t-{number}")) for number in range(6)]
        for days, claim in zip(range(6, 0, -1), claims, strict=True):
            await inbox.age(days, key=claim.key)
        now = datetime.now(UTC)
        where = TaskFilter(
            "dead", since=now - timedelta(days=5, hours=1), until=now - timedelta(days=1, hours=1)
        )

        first = await list_tasks(inbox.database, where, limit=3)
        rest = await list_tasks(inbox.database, where, limit=3, before_key=first.before_key)

        assert [task.id for task in first.tasks] == ["t-4", "t-3", "t-2"]
        assert ([task.id for task in rest.tasks], rest.before_key) == (["t-1"], None)


@pytest.mark.parametrize(
    "where",
    [TaskFilter(queue="rare"), TaskFilter(name="seldom"), TaskFilter("succeeded", "rare", "seldom")],
    ids=["a queue", "a name", "both"],
)
async def test_the_few_tasks_of_a_queue_or_name_are_found_however_old(
    database_url: str, monkeypatch: pytest.MonkeyPatch, where: TaskFilter
) -> None:
    monkeypatch.setattr(listing, "MAX_WALK", 1)
    monkeypatch.setattr(listing, "FEW", 2)
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message("t-1", queue="rare", name="seldom"))
        await inbox.succeed(a_message("t-2", queue="rare", name="seldom"))
        await some_tasks(inbox, 3)

        page = await list_tasks(inbox.database, where)

        assert ([task.id for task in page.tasks], page.before_key) == (["t-2", "t-1"], None)


async def test_the_many_tasks_of_a_queue_are_looked_for_among_the_newest(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_WALK", 2)
    monkeypatch.setattr(listing, "FEW", 1)
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message("t-1", queue="reports"))
        await inbox.succeed(a_message("t-2", queue="reports"))
        await some_tasks(inbox, 1)

        page = await list_tasks(inbox.database, TaskFilter(queue="reports"))

        assert [task.id for task in page.tasks] == ["t-2"]
        assert page.before_key is not None


async def test_a_page_is_never_larger_than_a_thousand(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.execute("""
            INSERT INTO {schema}.tasks (queue, name, message_id, digest, state, max_attempts)
            SELECT 'q', 'n', i::text, '', 'queued', 1 FROM generate_series(1, 1100) i""")

        page = await list_tasks(inbox.database, EVERYTHING, limit=5000)

        assert len(page.tasks) == 1000


async def test_a_task_is_shown_with_all_that_hangs_on_it(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.postpone(a_message())

        [detail] = await show_task(inbox.database, TaskLookup("t-1"))

        assert detail.task.state == "retrying"
        assert detail.has_payload
        assert [(each.attempt, each.error_type) for each in detail.attempts] == [(1, "ValueError")]
        assert [(each.kind, each.routing_key) for each in detail.owed] == [("copy", "email")]


async def test_a_dead_task_is_shown_with_its_letter(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message(), a_failure("no"))

        [detail] = await show_task(inbox.database, TaskLookup("t-1"))

        assert [(each.reason, each.error_message) for each in detail.dead_letters] == [("gave_up", "no")]


async def test_a_result_is_shown_as_the_value_that_it_is(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message(), '{"width": 3}')

        [detail] = await show_task(inbox.database, TaskLookup("t-1"))

        assert detail.result == {"width": 3}


async def test_an_unknown_task_is_not_shown(database_url: str) -> None:
    async with opened(database_url) as inbox:
        assert await show_task(inbox.database, TaskLookup("t-1")) == []


async def test_stats_count_states_and_failures_by_queue_and_name(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message("t-1"))
        await inbox.succeed(a_message("t-2"))
        await inbox.succeed(a_message("t-3"))
        await inbox.die(a_message("t-4"))
        await inbox.claim(a_message("t-5"))
        await inbox.claim(a_message("t-6", queue="reports"))

        emails, reports = (await stats(inbox.database)).rows

        assert (emails.queue, emails.name) == ("email", "email.send")
        assert (emails.succeeded, emails.dead, emails.running) == (3, 1, 1)
        assert emails.failure_rate == pytest.approx(0.25)
        assert (reports.running, reports.failure_rate, reports.duration_max) == (1, None, None)


async def test_durations_are_those_of_the_last_attempt(database_url: str) -> None:
    async with opened(database_url) as inbox:
        for number in range(1, 101):
            await inbox.execute(
                """INSERT INTO {schema}.tasks (queue, name, message_id, digest, state, max_attempts,
                                               started_at, finished_at)
                   VALUES ('q', 'n', :id, '', 'succeeded', 1, now(), now() + :seconds * interval '1 s')""",
                id=str(number),
                seconds=number,
            )

        [only] = (await stats(inbox.database)).rows

        assert only.duration_p50 == pytest.approx(50.5)
        assert only.duration_p95 == pytest.approx(95.05)
        assert only.duration_max == pytest.approx(100)


async def test_stats_forget_what_is_old_but_not_what_still_waits(database_url: str) -> None:
    async with opened(database_url) as inbox:
        for claim in (await inbox.succeed(a_message("t-1")), await inbox.postpone(a_message("t-2"))):
            await inbox.age(3, key=claim.key)

        [only] = (await stats(inbox.database)).rows

        assert (only.succeeded, only.retrying) == (0, 1)


async def test_stats_of_too_many_tasks_say_that_only_the_newest_were_counted(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MAX_COUNTED", 2)
    async with opened(database_url) as inbox:
        await inbox.die(a_message("oldest"))
        await some_tasks(inbox, 2)

        found = await stats(inbox.database)

        assert found.is_partial
        assert [(row.succeeded, row.dead) for row in found.rows] == [(2, 0)]


async def test_open_letters_are_counted_by_queue_and_reason(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message("t-1"), reason=Reason.TIMEOUT)
        await inbox.die(a_message("t-2"), reason=Reason.TIMEOUT)
        await inbox.die(a_message("t-3", queue="reports"))

        counted = await open_letters(inbox.database)

        assert [(each.queue, each.reason, each.count) for each in counted] == [
            ("email", "timeout", 2),
            ("reports", "gave_up", 1),
        ]


async def test_the_age_of_the_outbox_is_that_of_the_oldest_row_that_is_due(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.postpone(a_message("t-1"))
        await inbox.postpone(a_message("t-2"))
        await inbox.execute(
            "UPDATE {schema}.outbox SET deliver_at = now() - interval '1 h' WHERE task_key = 1"
        )

        gauge = await outbox_gauge(inbox.database)

        assert gauge.size == 2
        assert gauge.oldest_due_age == pytest.approx(3600, abs=60)


async def test_an_empty_outbox_has_no_age(database_url: str) -> None:
    async with opened(database_url) as inbox:
        gauge = await outbox_gauge(inbox.database)

        assert (gauge.size, gauge.oldest_due_age) == (0, 0.0)

"""Commands against a real RabbitMQ and Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner, Result

from broker_worker.amqp.connection import connected
from broker_worker.cli import app
from broker_worker.store.dead_letters import Desk, KeptLetter, Selection
from tests.support.inbox import Inbox, a_message, opened
from tests.support.services import Broker, execute

T = TypeVar("T")


class Shell:
    """Runs commands in an environment."""

    def __init__(self, **environment: str) -> None:
        self._environment = {f"BROKER_WORKER_{name}": value for name, value in environment.items()}

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, env={**self._environment, "COLUMNS": "200"})

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def database(database_url: str) -> Shell:
    return Shell(DATABASE_URL=database_url)


@pytest.fixture
def rabbit(broker: Broker) -> Shell:
    return Shell(AMQP_URL=broker.url, PREFIX=broker.prefix, QUEUES="email")


def prepare(database_url: str, act: Callable[[Inbox], Awaitable[T]]) -> T:
    async def main() -> T:
        async with opened(database_url) as inbox:
            return await act(inbox)

    return asyncio.run(main())


def two_dead(database_url: str) -> list[KeptLetter]:
    async def act(inbox: Inbox) -> list[KeptLetter]:
        await inbox.die(a_message("t-1"))
        await inbox.die(a_message("t-2"))
        return await Desk(inbox.database).list_letters(Selection())

    return prepare(database_url, act)


def test_a_schema_that_is_not_there_is_one_line_that_says_what_to_do(database_url: str) -> None:
    result = Shell(DATABASE_URL=database_url, DATABASE_SCHEMA="elsewhere")("tasks", "list")

    assert result.exit_code == 1
    assert result.stderr == "schema 'elsewhere' is not there yet: run `broker-worker migrate`\n"


def test_migrate_brings_the_schema_and_can_be_repeated(database_url: str) -> None:
    shell = Shell(DATABASE_URL=database_url, DATABASE_SCHEMA="elsewhere")

    first, second = shell("migrate"), shell("migrate")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert shell("tasks", "list").exit_code == 0


def test_a_role_without_rights_is_told_about_grants(database_url: str, database: Shell) -> None:
    role = "bw_" + database_url.rpartition("/")[2].partition("?")[0]

    async def act(inbox: Inbox) -> None:
        await inbox.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        await inbox.execute(f"GRANT USAGE ON SCHEMA broker_worker TO {role}")
        await inbox.execute(f"GRANT SELECT ON broker_worker.alembic_version TO {role}")
        await inbox.execute(f"ALTER DATABASE {role[3:]} SET role = {role}")

    prepare(database_url, act)
    try:
        result = database("tasks", "list")
    finally:  # a role is the whole server's, and outlives the test's database
        execute(database_url, f"SET ROLE none; DROP OWNED BY {role}; DROP ROLE {role}")

    assert result.exit_code == 1
    assert result.stderr == "permission denied for table tasks: see `broker-worker grants`\n"


def test_tasks_are_listed_as_text_and_as_json(database_url: str, database: Shell) -> None:
    prepare(database_url, lambda inbox: inbox.succeed(a_message("t-1")))

    text = database("tasks", "list")
    [task] = database.json("tasks", "list", "--state", "succeeded")

    assert text.stdout.splitlines()[1].startswith("t-1\temail.send\temail\tsucceeded\t1/3\t")
    assert (task["id"], task["state"], task["attempt"]) == ("t-1", "succeeded", 1)


def test_a_full_page_says_how_to_get_the_next(database_url: str, database: Shell) -> None:
    async def act(inbox: Inbox) -> None:
        for number in range(3):
            await inbox.succeed(a_message(f"t-{number}"))

    prepare(database_url, act)
    first = database("tasks", "list", "--limit", "2")

    rest = database.json("tasks", "list", *first.stderr.split()[-2:])

    assert [task["id"] for task in rest] == ["t-0"]


def test_a_task_is_shown_with_its_result(database_url: str, database: Shell) -> None:
    prepare(database_url, lambda inbox: inbox.succeed(a_message("t-1"), '{"width": 3}'))

    [task] = database.json("tasks", "show", "t-1")
    text = database("tasks", "show", "t-1")

    assert task["result"] == {"width": 3}
    assert "  state: succeeded\n" in text.stdout


@pytest.mark.parametrize("result", ['"shipped"', '"42"', '"null"', "[1]"])
def test_a_result_is_shown_as_what_it_is(database_url: str, database: Shell, result: str) -> None:
    prepare(database_url, lambda inbox: inbox.succeed(a_message("t-1"), result))

    [shown] = database.json("tasks", "show", "t-1")
    assert shown["result"] == json.loads(result)


def test_a_dead_task_is_shown_with_its_traceback(database_url: str, database: Shell) -> None:
    two_dead(database_url)

    text = database("tasks", "show", "t-1")

    assert "    Traceback: line 1\n" in text.stdout
    assert "dead letter " in text.stdout


def test_an_unknown_task_is_one_line_and_exit_1(database_url: str, database: Shell) -> None:
    prepare(database_url, lambda inbox: inbox.relay())
    for command in ("show", "cancel", "erase"):
        result = database("tasks", command, "nobody")

        assert result.exit_code == 1
        assert result.stderr.startswith("no task with id 'nobody': not received yet")


def test_watching_a_finished_task_ends_at_once(database_url: str, database: Shell) -> None:
    prepare(database_url, lambda inbox: inbox.succeed(a_message("t-1")))

    result = database("tasks", "watch", "t-1")

    assert (result.exit_code, result.stdout) == (0, "succeeded: attempt 1/3\n")


def test_watching_what_did_not_succeed_exits_1(database_url: str, database: Shell) -> None:
    two_dead(database_url)

    result = database("tasks", "watch", "t-1")

    assert (result.exit_code, result.stdout) == (1, "dead: attempt 1/3, reason gave_up, ValueError\n")


def test_watching_ends_when_the_time_is_over(database_url: str, database: Shell) -> None:
    prepare(database_url, lambda inbox: inbox.relay())

    result = database("tasks", "watch", "t-1", "--timeout", "5s")

    assert (result.exit_code, result.stdout) == (1, "unknown: not received yet, or never sent\n")


def test_a_task_is_cancelled_and_erased(database_url: str, database: Shell) -> None:
    async def act(inbox: Inbox) -> None:
        await inbox.postpone(a_message("t-1"))
        await inbox.confirm_everything()

    prepare(database_url, act)

    cancelled = database("tasks", "cancel", "t-1", "--actor", "ada")
    erased = database("tasks", "erase", "t-1", "--actor", "ada")
    again = database("tasks", "cancel", "t-1", "--actor", "ada")

    assert (cancelled.exit_code, cancelled.stdout) == (0, "t-1: cancelled\n")
    assert (erased.exit_code, erased.stdout) == (0, "t-1: erased\n")
    assert (again.exit_code, again.stdout) == (1, "t-1: it has cancelled already\n")


def test_dead_letters_are_listed_grouped_and_shown(database_url: str, database: Shell) -> None:
    letters = two_dead(database_url)

    listed = database.json("dead", "list")
    [group] = database.json("dead", "groups")
    [shown] = database.json("dead", "show", str(letters[0].id))
    text = database("dead", "show", str(letters[0].id))

    assert [letter["message_id"] for letter in listed] == ["t-2", "t-1"]
    assert (group["count"], group["example"]) == (2, str(letters[0].id))
    assert (shown["message_id"], shown["body"]) == ("t-2", "{}")
    assert text.stdout.endswith("body:\n{}\n")


def test_a_dry_run_lists_and_changes_nothing(database_url: str, database: Shell) -> None:
    two_dead(database_url)

    result = database("dead", "replay", "--all", "--dry-run")

    assert result.exit_code == 0
    assert result.stderr == "2 dead letters, nothing was changed\n"
    assert len(database.json("dead", "list")) == 2


def test_a_group_is_replayed(database_url: str, database: Shell) -> None:
    two_dead(database_url)
    [group] = database.json("dead", "groups")

    result = database("dead", "replay", "--group", group["group"], "--rate", "1000/s", "--actor", "ada")

    assert (result.exit_code, result.stderr) == (0, "replayed 2\n")
    assert database.json("dead", "list") == []
    assert {task["state"] for task in database.json("tasks", "list")} == {"queued"}


def test_a_second_replay_says_so_and_exits_1(database_url: str, database: Shell) -> None:
    letter = str(two_dead(database_url)[0].id)
    database("dead", "replay", letter)

    result = database("dead", "replay", letter)

    assert result.exit_code == 1
    assert result.stdout.startswith(f"{letter}: already replayed at ")
    assert result.stderr == "replayed 0, left alone 1\n"


def test_a_selection_that_fits_nothing_exits_1(database_url: str, database: Shell) -> None:
    two_dead(database_url)

    result = database("dead", "discard", "--reason", "timeout")

    assert (result.exit_code, result.stderr) == (1, "discarded 0\n")


def test_letters_are_discarded_by_what_they_have_in_common(database_url: str, database: Shell) -> None:
    two_dead(database_url)

    verdicts = database.json("dead", "discard", "--queue", "email")

    assert [verdict["is_done"] for verdict in verdicts] == [True, True]
    assert {letter["resolution"] for letter in database.json("dead", "list", "--all")} == {"discarded"}


def test_stats_are_printed(database_url: str, database: Shell) -> None:
    two_dead(database_url)

    [row] = database.json("stats", "--since", "1h")

    assert (row["name"], row["dead"], row["failure_rate"]) == ("email.send", 2, 1.0)
    assert "\t100.0%\t" in database("stats").stdout


def test_handlers_are_described_with_the_schema_of_their_payload(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path_factory.mktemp("handlers")
    (directory / "cli_handlers.py").write_text(
        "from broker_worker import Registry\n"
        "registry = Registry()\n"
        "@registry.task('email.send', max_attempts=5, timeout=30)\n"
        "async def send(to: str) -> None: ...\n"
    )
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))

    [handler] = Shell(HANDLERS="cli_handlers").json("handlers")

    assert (handler["name"], handler["max_attempts"], handler["timeout"]) == ("email.send", 5, 30.0)
    assert handler["payload"]["required"] == ["to"]


def test_the_topology_is_applied_and_then_verified(rabbit: Shell) -> None:
    before = rabbit("topology", "verify")
    applied = rabbit.json("topology", "apply")
    after = rabbit("topology", "verify")

    assert (before.exit_code, after.exit_code) == (1, 0)
    assert applied != []
    assert rabbit.json("topology", "apply") == []


def test_a_published_task_is_in_its_queue_under_its_id(rabbit: Shell, broker: Broker) -> None:
    rabbit("topology", "apply")

    [published] = rabbit.json(
        "publish", "email.send", "--data", '{"to": 1}', "--id", "t-1", "--delay", "5m", "-H", "colour=blue"
    )

    assert published == {"id": "t-1", "name": "email.send", "queue": "email"}
    headers, body = asyncio.run(only_message(broker))
    assert body == b'{"to": 1}'
    assert (headers["bw-task-id"], headers["colour"]) == ("t-1", "blue")
    assert "deliver-at" in headers


def test_a_task_for_a_queue_that_is_not_there_is_refused(rabbit: Shell) -> None:
    rabbit("topology", "apply")

    result = rabbit("publish", "email.send", "--queue", "emial")

    assert result.exit_code == 1
    assert "there is no queue" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_check_of_a_working_system_is_all_ok(
    broker: Broker,
    database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path_factory.mktemp("handlers")
    (directory / "checked_handlers.py").write_text(
        "from broker_worker import Registry\n"
        "registry = Registry()\n"
        "@registry.task('email.send')\n"
        "async def send(to: str) -> None: ...\n"
    )
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))
    prepare(database_url, lambda inbox: inbox.relay())

    shell = Shell(
        AMQP_URL=broker.url, PREFIX=broker.prefix, DATABASE_URL=database_url, HANDLERS="checked_handlers"
    )
    findings = shell.json("check")

    assert [(finding["check"], finding["ok"]) for finding in findings] == [
        ("settings", True),
        ("broker", True),
        ("topology", True),
        ("database", True),
        ("schema", True),
        ("handlers", True),
    ]


async def only_message(broker: Broker) -> tuple[dict[str, Any], bytes]:
    async with connected(broker.url, "test") as connection:
        channel = await connection.wire.channel()
        got = await channel.basic_get(f"{broker.prefix}.q.email", no_ack=True)
        return dict(got.header.properties.headers or {}), bytes(got.body)

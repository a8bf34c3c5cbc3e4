"""What the command line says of itself, and to those who mistype."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from typer.testing import CliRunner, Result

from broker_worker.cli import app
from broker_worker.cli.tasks import STATES
from broker_worker.task import TaskState

COMMANDS = (
    ("run",),
    ("dev",),
    ("check",),
    ("migrate",),
    ("grants",),
    ("topology", "apply"),
    ("topology", "verify"),
    ("topology", "plan"),
    ("handlers",),
    ("publish",),
    ("tasks", "list"),
    ("tasks", "show"),
    ("tasks", "watch"),
    ("tasks", "cancel"),
    ("tasks", "erase"),
    ("dead", "list"),
    ("dead", "groups"),
    ("dead", "show"),
    ("dead", "replay"),
    ("dead", "discard"),
    ("stats",),
)
UNANSWERED = "postgresql://u:secret@127.0.0.1:1/x"  # nothing listens on port 1


def invoke(*arguments: str, **environment: str) -> Result:
    given: Mapping[str, str | None] = {
        **{name: None for name in os.environ if name.startswith("BROKER_WORKER_")},
        **{f"BROKER_WORKER_{name}": value for name, value in environment.items()},
        "COLUMNS": "200",
    }
    return CliRunner().invoke(app, arguments, env=given)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    result = invoke(*command, "--help")

    assert result.exit_code == 0
    assert f"broker-worker {' '.join(command)}" in " ".join(result.stdout.split())


def test_help_imports_no_driver_and_no_client_library() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from broker_worker.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "print([name for name in ('sqlalchemy', 'asyncpg', 'aio_pika', 'alembic') if name in sys.modules])"
    )

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


def test_a_version_is_printed() -> None:
    assert invoke("--version").stdout.strip()[0].isdigit()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("tasks", "nonsense"),
        ("tasks", "list", "--state", "asleep"),
        ("tasks", "list", "--since", "yesterday"),
        ("tasks", "list", "--limit", "1001"),
        ("tasks", "watch", "t", "--timeout", "soon"),
        ("tasks", "show"),
        ("dead", "show", "no-uuid"),
        ("dead", "replay"),
        ("dead", "replay", "--all", "--reason", "timeout"),
        ("dead", "replay", "--all", "--rate", "fast"),
        ("dead", "replay", "--all", "--rate", "0"),
        ("dead", "discard"),
        ("grants", 'a"b'),
        ("stats", "--since", "long"),
        ("migrate", "--sequel"),
    ],
    ids=" ".join,
)
def test_a_mistyped_command_ends_with_usage_and_exit_2(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments, DATABASE_URL=UNANSWERED)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "n", "--data", "{"),
        ("publish", "n", "--data", "@/no/such/file"),
        ("publish", "n", "--header", "no-value"),
        ("publish", "n", "--header", "x-death=1"),
        ("publish", "n", "--header", "CC=q"),
        ("publish", "n", "--delay", "later"),
        ("publish", "n", "--queue", "a.b"),
    ],
    ids=" ".join,
)
def test_a_mistyped_publish_sends_nothing_and_exits_2(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments, AMQP_URL="amqp://127.0.0.1:1/")

    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_several_queues_make_publish_ask_which() -> None:
    result = invoke("publish", "n", AMQP_URL="amqp://127.0.0.1:1/", QUEUES="email,reports")

    assert result.exit_code == 2
    assert result.stderr == "there are several queues, name one by --queue: email, reports\n"


@pytest.mark.parametrize(
    "command",
    [("tasks", "list"), ("dead", "list"), ("stats",), ("migrate",), ("tasks", "cancel", "t-1")],
    ids=" ".join,
)
def test_a_missing_setting_is_one_line_that_names_it_and_exit_2(command: tuple[str, ...]) -> None:
    result = invoke(*command)

    assert result.exit_code == 2
    assert result.stderr.startswith("BROKER_WORKER_DATABASE_URL or BROKER_WORKER_DATABASE_URL_FILE: not set")
    assert len(result.stderr.splitlines()) == 1


def test_run_names_everything_that_is_missing() -> None:
    result = invoke("run")

    assert result.exit_code == 2
    assert [line.split()[0].rstrip(":") for line in result.stderr.splitlines()] == [
        "BROKER_WORKER_AMQP_URL",
        "BROKER_WORKER_DATABASE_URL",
        "BROKER_WORKER_HANDLERS",
    ]


def test_a_database_that_does_not_answer_is_one_line_without_the_password() -> None:
    result = invoke("tasks", "list", DATABASE_URL=UNANSWERED)

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


def test_a_broker_that_does_not_answer_is_one_line_without_the_password() -> None:
    result = invoke("topology", "verify", AMQP_URL="amqp://u:secret@127.0.0.1:1/")

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


def test_a_check_says_which_setting_is_wrong_and_exits_1() -> None:
    result = invoke("check")

    assert result.exit_code == 1
    assert result.stdout.startswith("failed\tsettings\tBROKER_WORKER_AMQP_URL")


def test_a_check_goes_on_after_what_failed() -> None:
    result = invoke(
        "check", AMQP_URL="amqp://127.0.0.1:1/", DATABASE_URL=UNANSWERED, HANDLERS="no_such_module"
    )

    assert result.exit_code == 1
    assert [line.split("\t")[:2] for line in result.stdout.splitlines()] == [
        ["ok", "settings"],
        ["failed", "broker"],
        ["failed", "topology"],
        ["failed", "database"],
        ["failed", "schema"],
        ["failed", "handlers"],
    ]


def test_a_plan_needs_no_broker() -> None:
    result = invoke("topology", "plan", QUEUES="email", PREFIX="mine")

    assert result.exit_code == 0
    assert "queue\tmine.q.email\t" in result.stdout


def test_tasks_are_listed_by_any_state_there_is() -> None:
    assert tuple(TaskState) == STATES


def test_sql_and_grants_are_printed_without_a_database() -> None:
    sql = invoke("migrate", "--sql", DATABASE_SCHEMA="mine")
    grants = invoke("grants", "app", DATABASE_SCHEMA="mine")

    assert 'CREATE TABLE "mine".tasks' in sql.stdout
    assert 'GRANT USAGE ON SCHEMA "mine" TO "app";' in grants.stdout
    assert (sql.exit_code, grants.exit_code) == (0, 0)

"""What an operator mistypes ends in one line, and never in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[3]
BASE = {
    "BROKER_WORKER_AMQP_URL": "amqp://guest:guest@127.0.0.1:1/",
    "BROKER_WORKER_DATABASE_URL": "postgresql://nobody:pw@127.0.0.1:1/none",
    "BROKER_WORKER_HANDLERS": "tests.support.handlers",
    "BROKER_WORKER_HTTP_BIND": "off",
}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("DATABASE_URL", "postgresql://u:s3cret@127.0.0.1:abc/x"),
        ("DATABASE_URL", "postgresql://u:s3cret@[::1/x"),
        ("DATABASE_URL", "postgresql://u:s3cret@127.0.0.1:99999/x"),
        ("DATABASE_URL", "postgresql://u:s3cret@127.0.0.1/x?port=99999"),
        ("DATABASE_URL", "postgresql://u:s3cret@127.0.0.1/x?sslmode=bogus"),
        ("DATABASE_URL", "postgresql://u:s3cret@127.0.0.1/x?target_session_attrs=bogus"),
        ("DATABASE_URL", "mysql://u:s3cret@127.0.0.1/x"),
        ("HANDLERS", "tests.support.no_such_module"),
        ("HANDLERS", "tests.support.handlers:nothing"),
        ("QUEUES", "default:0"),
        ("QUEUES", "a.b"),
        ("TASK_TIMEOUT", "soon"),
        ("QEUES", "default:1"),
        ("HTTP_BIND", "here"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_2(setting: str, value: str) -> None:
    environment = {**clean_environment(), **BASE, f"BROKER_WORKER_{setting}": value}

    done = run("run", environment=environment)

    said = (done.stdout + done.stderr).strip()
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert "s3cret" not in said
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["tasks", "show", "none"],
        ["dead", "list"],
        ["stats"],
        ["migrate"],
        ["topology", "verify"],
        ["publish", "x", "--data", "{}"],
    ],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_one_line_and_exit_1(arguments: list[str]) -> None:
    done = run(*arguments, environment={**clean_environment(), **BASE})

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def run(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker_worker", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept

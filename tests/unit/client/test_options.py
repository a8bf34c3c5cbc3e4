"""What a client is made with, and what is missing only when it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from broker_worker.client import Client, SyncClient
from broker_worker.client.client import environment_options
from broker_worker.errors import ConfigurationError

NOWHERE = {
    "BROKER_WORKER_AMQP_URL": "amqp://user:secret@127.0.0.1:1/",
    "BROKER_WORKER_DATABASE_URL": "postgresql://user:secret@127.0.0.1:1/app",
}


@pytest.mark.parametrize(
    ("given", "queues", "expected"),
    [
        (None, "email", "email"),
        ("reports", "email", "reports"),
        (None, "email,reports", None),
        (None, "", "default"),
    ],
)
def test_tasks_go_to_the_queue_that_is_given_or_the_only_one_of_the_worker(
    given: str | None, queues: str, expected: str | None
) -> None:
    options = environment_options({"BROKER_WORKER_QUEUES": queues}, registry=None, queue=given)

    assert options["queue"] == expected


def test_the_environment_names_prefix_and_schema_as_for_the_worker() -> None:
    environ = {"BROKER_WORKER_PREFIX": "shop", "BROKER_WORKER_DATABASE_SCHEMA": "tasks"}

    options = environment_options(environ, registry=None, queue=None)

    assert (options["prefix"], options["schema"]) == ("shop", "tasks")


def test_a_variable_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_WORKER_AMQP_URL", "http://127.0.0.1/")

    for kind in (Client, SyncClient):
        with pytest.raises(ConfigurationError, match="BROKER_WORKER_AMQP_URL: allowed is a URL that begins"):
            kind.from_environment()


async def test_what_is_missing_is_told_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in NOWHERE:
        monkeypatch.delenv(variable, raising=False)

    async with Client.from_environment() as client:
        with pytest.raises(ConfigurationError, match=r"publishing needs .* \(BROKER_WORKER_AMQP_URL\)"):
            await client.publish("report")
        with pytest.raises(ConfigurationError, match=r"a status needs .* \(BROKER_WORKER_DATABASE_URL\)"):
            await client.status("t-1")
        with pytest.raises(ConfigurationError, match=r"cancelling needs .* \(BROKER_WORKER_DATABASE_URL\)"):
            await client.cancel("t-1")
        with pytest.raises(ConfigurationError, match=r"waiting needs .* \(BROKER_WORKER_DATABASE_URL\)"):
            await client.wait("t-1")


async def test_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, url in NOWHERE.items():
        monkeypatch.setenv(variable, url)

    async with Client.from_environment() as client:
        shown = repr(vars(client))

    assert "secret" not in shown


def test_an_unknown_argument_is_told_at_once() -> None:
    with pytest.raises(TypeError, match="amqp"):
        SyncClient(amqp="amqp://127.0.0.1/")  # type: ignore[call-arg]  # that is the mistake


def test_whoever_only_writes_handlers_loads_no_driver() -> None:
    drivers = {"aio_pika", "aiormq", "sqlalchemy", "asyncpg"}
    program = "import sys, broker_worker; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not drivers & set(loaded.stdout.split())

"""Fixtures that every kind of test may use. Servers start only if a collected test asks for them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from broker_worker.local import LocalServerError, PrivatePostgres, PrivateRabbitMQ, Servers
from tests.support.services import (
    Broker,
    Run,
    RunningServers,
    as_workerinput,
    fresh_broker,
    fresh_database,
    from_workerinput,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.workermanage import WorkerController

RUN = pytest.StashKey[Run]()
SECONDS_WITH_SERVERS = 180  # for a test that waits for them, on a machine that has other things to do

# a busy machine generates slowly, and fails nothing by it
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")


def pytest_configure(config: pytest.Config) -> None:
    """Own the run, or take it from the process that does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # as in a job that a shell put into the background: each program that we start would ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    workerinput: dict[str, dict[str, str]] = getattr(config, "workerinput", {})
    config.stash[RUN] = from_workerinput(workerinput["run"]) if workerinput else Run.begin()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a worker of xdist about the run."""
    node.workerinput["run"] = as_workerinput(node.config.stash[RUN])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers here, where no test's timeout is running, if any test is going to ask for them."""
    asking = [item for item in session.items if "running_servers" in getattr(item, "fixturenames", ())]
    for item in asking:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS_WITH_SERVERS))
    if session.config.option.collectonly:
        return
    if asking:
        try:
            session.config.stash[RUN].running()
        except LocalServerError:
            return  # each test that asks for them fails with it


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the servers with the run."""
    if not hasattr(config, "workerinput"):
        config.stash[RUN].end()


@pytest.fixture(scope="session")
def running_servers(pytestconfig: pytest.Config) -> RunningServers:
    try:
        return pytestconfig.stash[RUN].running()
    except LocalServerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def servers(running_servers: RunningServers) -> Servers:
    return running_servers.servers


@pytest.fixture
def broker(servers: Servers) -> Iterator[Broker]:
    """A virtual host of its own (or at least a prefix of its own) in the RabbitMQ of the run."""
    with fresh_broker(servers) as broker:
        yield broker


@pytest.fixture
def database_url(running_servers: RunningServers) -> Iterator[str]:
    """A database of its own, with the newest schema, in the Postgres of the run."""
    with fresh_database(running_servers) as url:
        yield url


@pytest.fixture
def private_rabbitmq() -> Iterator[PrivateRabbitMQ]:
    """A whole RabbitMQ of its own, to be stopped, killed and restarted; it takes seconds to start."""
    with PrivateRabbitMQ() as rabbitmq:
        yield rabbitmq


@pytest.fixture
def private_postgres() -> Iterator[PrivatePostgres]:
    """A whole Postgres of its own, to be stopped, killed and restarted."""
    with PrivatePostgres() as postgres:
        yield postgres

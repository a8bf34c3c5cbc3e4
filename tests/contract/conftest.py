"""Each suite of this folder runs on every world that keeps its port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from broker_worker.local import LocalServerError
from broker_worker.store.schema import grants_sql
from tests.support.pgbouncer import PgBouncer, running_pgbouncer
from tests.support.services import RunningServers, execute
from tests.support.worlds import SCHEMA, MemoryWorld, PostgresWorld, World

BEHIND_PGBOUNCER = {"test_task_store", "test_outbox"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a world in each of them, and two suites behind a pooler, too."""
    if "world" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        behind = ["pgbouncer"] if module in BEHIND_PGBOUNCER else []
        metafunc.parametrize("world", ["memory", "postgres", *behind], indirect=True)
    elif "postgres" in metafunc.fixturenames:
        metafunc.parametrize("postgres", ["postgres"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests need servers, so that these start before any test's timeout runs."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            kinds = {item.callspec.params.get("world"), item.callspec.params.get("postgres")}
            if kinds & {"postgres", "pgbouncer"}:
                item.fixturenames.append("running_servers")


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    url: str = request.getfixturevalue("database_url")
    runtime_url = url
    if request.param == "pgbouncer":
        runtime_url = request.getfixturevalue("pgbouncer").url(url)
    async with opened(url, runtime_url, request) as world:
        yield world


@pytest.fixture
async def postgres(request: pytest.FixtureRequest) -> AsyncIterator[PostgresWorld]:
    """For what only a real database can do."""
    url: str = request.getfixturevalue("database_url")
    async with opened(url, url, request) as world:
        yield world


@asynccontextmanager
async def opened(url: str, runtime_url: str, request: pytest.FixtureRequest) -> AsyncIterator[PostgresWorld]:
    world = PostgresWorld(url, runtime_url)
    async with world.cleanup:
        await world.begin()
        if runtime_url != url:
            for statement in grants_sql(SCHEMA, request.getfixturevalue("pgbouncer").role).splitlines():
                execute(url, statement)
        yield world


@pytest.fixture(scope="session")
def pgbouncer(running_servers: RunningServers) -> Iterator[PgBouncer]:
    try:
        with running_pgbouncer(running_servers.servers.database_url) as bouncer:
            yield bouncer
    except LocalServerError as error:
        pytest.fail(str(error), pytrace=False)

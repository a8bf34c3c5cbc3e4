"""What a database costs that is there and does not do its part: time, and nothing else."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until
from tests.support.services import with_database

pytestmark = pytest.mark.timeout(300)

REFUSE = """
CREATE SEQUENCE public.refusals;  -- which counts what is rolled back, too
GRANT ALL ON public.refusals TO PUBLIC;
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('public.refusals');
    RAISE EXCEPTION 'of a test' USING ERRCODE = '{code}';
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON broker_worker.tasks
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse();
"""
RELENT = "DROP TRIGGER refuse ON broker_worker.tasks"
REFUSED = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS times FROM public.refusals"


def execute(url: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def some(first: int, count: int = 5) -> list[str]:
    return [f"t-{number}" for number in range(first, first + count)]


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("53100", id="its disk is full"),
        pytest.param("40P01", id="it finds deadlocks"),
        pytest.param("25006", id="it became read-only"),
        pytest.param("XX000", id="it says what nobody expects"),
    ],
)
def test_while_a_database_refuses_to_write_what_runs_is_kept_and_nothing_is_charged(
    service: Service, code: str
) -> None:
    service.settings = {"QUEUES": "default:10"}
    service.start()
    service.publish(*(message("gated", task) for task in some(0)))
    until("five run", lambda: len(service.runs()) == 5)

    execute(service.database_url, REFUSE.format(code=code))
    service.gate.touch()
    service.publish(*(message("double", task, {"x": 1}) for task in some(5)))
    until("it refused for a while", lambda: service.rows(REFUSED)[0]["times"] >= 10)
    meanwhile = service.states()
    execute(service.database_url, RELENT)

    assert meanwhile == {"running": 5}
    service.until_states(succeeded=10)
    service.until_rest()
    assert set(service.runs().values()) == {1}
    assert {row["attempt"] for row in service.rows("SELECT attempt FROM tasks")} == {1}
    assert service.rows("SELECT * FROM attempts") == []


def test_a_database_that_lets_nobody_in_is_waited_for(service: Service) -> None:
    service.settings = {"QUEUES": "default:10"}
    worker = service.start()
    name = service.database_url.rpartition("/")[2].partition("?")[0]
    elsewhere = with_database(service.database_url, "postgres")
    service.publish(*(message("gated", task) for task in some(0)))
    until("five run", lambda: len(service.runs()) == 5)

    execute(
        elsewhere,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    service.gate.touch()
    until("it is not ready", lambda: worker.get("/readyz")[0] == 503)
    service.publish(*(message("double", task, {"x": 1}) for task in some(5)))
    execute(elsewhere, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    worker.wait_ready()
    service.until_states(succeeded=10)
    service.until_rest()
    assert set(service.runs().values()) == {1}
    assert {row["attempt"] for row in service.rows("SELECT attempt FROM tasks")} == {1}


def test_after_a_database_was_set_back_in_time_a_fresh_worker_does_all_that_the_broker_still_has(
    service: Service,
) -> None:
    worker = service.start()
    service.publish(*(message("gated", task) for task in some(0)))
    until("five run", lambda: len(service.runs()) == 5)

    execute(
        service.database_url,
        "DELETE FROM broker_worker.tasks",
        "DELETE FROM broker_worker.workers",
    )
    code = worker.wait()
    service.gate.touch()
    service.start()

    assert code == 1  # a worker that the database does not know is as good as dead
    service.until_states(succeeded=5)
    service.until_rest()

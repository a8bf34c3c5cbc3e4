"""SIGTERM while one of the servers does not answer: soon over, nothing lost, nothing charged wrongly."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import asyncpg
import psycopg
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import DaemonProcess, until
from tests.support.gateway import gateway

pytestmark = pytest.mark.timeout(300)

SECONDS_TO_END = 30.0  # what Kubernetes gives
LOCK = "LOCK TABLE broker_worker.tasks IN SHARE ROW EXCLUSIVE MODE"


def end(worker: DaemonProcess) -> None:
    worker.signal(signal.SIGTERM)
    assert worker.wait(SECONDS_TO_END) == 0, worker.tail()


@contextmanager
def holding(service: Service, statement: str) -> Iterator[psycopg.Connection]:
    """Hold what a statement locks."""
    with psycopg.connect(service.database_url) as connection:
        connection.execute(statement)
        yield connection
        connection.rollback()


def is_blocked(service: Service) -> Callable[[], bool]:
    """Whether somebody waits for a lock."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return lambda: bool(service.rows(waiting))


def finish(service: Service, task: str) -> asyncpg.Record:
    """Let another daemon do what is left."""
    service.gate.touch()
    service.start()
    until("it has succeeded", lambda: service.task(task)["state"] == "succeeded")
    service.until_rest()
    return service.task(task)


@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "is silent"])
@pytest.mark.parametrize("server", ["broker", "database"])
def test_before_it_is_ready_a_worker_ends_at_once_whatever_its_servers_do(
    service: Service, server: str, *, is_silent: bool
) -> None:
    url = service.amqp_url if server == "broker" else service.database_url
    with gateway(url, query="sslmode=disable" if server == "database" else "") as (way, through):
        way.fall_silent() if is_silent else way.shut()
        worker = service.start(ready=False, **{"AMQP_URL" if server == "broker" else "DATABASE_URL": through})
        word = "worker serving" if server == "broker" else "worker starting"
        until("it has begun", lambda: word in worker.log.read_text())

        end(worker)


@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "is silent"])
def test_a_run_that_ends_while_the_broker_is_away_is_recorded_and_not_run_again(
    service: Service, *, is_silent: bool
) -> None:
    with gateway(service.amqp_url) as (way, through):
        worker = service.start(AMQP_URL=through)
        service.publish(message("gated", "t-1"))
        until("it runs", lambda: service.runs()["t-1"] == 1)
        way.fall_silent() if is_silent else way.shut()
        worker.signal(signal.SIGTERM)
        service.gate.touch()

        assert worker.wait(SECONDS_TO_END) == 0

    assert finish(service, "t-1")["attempt"] == 1
    assert service.runs() == {"t-1": 1}


def test_a_run_cut_while_the_broker_is_away_is_released_uncharged(service: Service) -> None:
    with gateway(service.amqp_url) as (way, through):
        worker = service.start(AMQP_URL=through, SHUTDOWN_GRACE="1s")
        service.publish(message("gated", "t-1"))
        until("it runs", lambda: service.runs()["t-1"] == 1)
        way.shut()

        end(worker)

    assert finish(service, "t-1")["attempt"] == 1
    assert service.runs() == {"t-1": 2}


def test_a_claim_that_waits_for_a_lock_is_given_up_uncharged(service: Service) -> None:
    worker = service.start(SHUTDOWN_GRACE="1s")
    with holding(service, LOCK):
        service.publish(message("double", "t-1", {"x": 1}))
        until("the claim waits", is_blocked(service))

        end(worker)

    assert finish(service, "t-1")["attempt"] == 1
    assert service.runs() == {"t-1": 1}


def test_an_outcome_that_waits_for_a_lock_is_not_lost(service: Service) -> None:
    worker = service.start(SHUTDOWN_GRACE="1s")
    service.publish(message("gated", "t-1"))
    until("it runs", lambda: service.runs()["t-1"] == 1)
    with holding(service, LOCK):
        service.gate.touch()
        until("its outcome waits", is_blocked(service))

        end(worker)

    finish(service, "t-1")


def test_a_handlers_commit_that_waits_for_another_is_done_once_or_not_at_all(service: Service) -> None:
    service.settings = {"HANDLERS": "tests.support.author_handlers"}
    service.rows("CREATE TABLE public.effects (task_id text NOT NULL)")
    service.rows(
        """CREATE FUNCTION public.wait_at_the_end() RETURNS trigger LANGUAGE plpgsql
           AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'"""
    )
    service.rows(
        """CREATE CONSTRAINT TRIGGER at_the_end AFTER INSERT ON public.effects
           DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait_at_the_end()"""
    )
    worker = service.start(SHUTDOWN_GRACE="1s")
    with holding(service, "SELECT pg_advisory_xact_lock(1)"):
        service.publish(message("effect", "t-1"))
        until("its commit waits", is_blocked(service))

        end(worker)

    assert finish(service, "t-1")["attempt"] == 1
    until("what it sent is done", lambda: service.states() == {"succeeded": 2})
    assert service.rows("SELECT task_id FROM public.effects") == [("t-1",)]


def test_heartbeats_go_on_until_the_last_task_of_a_drain_has_ended(service: Service) -> None:
    worker = service.start(AMQP_URL=f"{service.amqp_url}?heartbeat=3")  # it is missed after three at most
    service.publish(message("takes_a_while", "t-1", {"seconds": 15}))
    until("it runs", lambda: service.runs()["t-1"] == 1)

    end(worker)

    assert service.states() == {"succeeded": 1}
    assert service.depth() == 0
    lines = [str(line["message"]) for line in worker.lines()]
    assert "connection lost" not in lines[: lines.index("worker stopped")]
    assert service.runs() == {"t-1": 1}

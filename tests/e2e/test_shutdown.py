"""The end of a daemon: nothing lost, nothing charged, exit 0."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until

pytestmark = pytest.mark.timeout(240)


def test_sigterm_lets_running_tasks_finish(service: Service) -> None:
    worker = service.start()
    service.publish(*(message("gated", f"t-{i}") for i in range(5)))
    until("five run", lambda: len(service.runs()) == 5)

    worker.signal(signal.SIGTERM)
    until("it is not ready", lambda: worker.get("/readyz")[0] != 200)
    service.gate.touch()

    assert worker.wait() == 0
    assert service.states() == {"succeeded": 5}
    assert set(service.runs().values()) == {1}


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)], ids=["grace", "hurry"]
)
def test_what_does_not_finish_in_time_is_released_uncharged_and_run_by_the_next(
    service: Service, signals: tuple[signal.Signals, ...]
) -> None:
    grace = "1s" if len(signals) == 1 else "1h"  # a second signal does not wait for the grace
    worker = service.start(SHUTDOWN_GRACE=grace)
    service.publish(*(message("gated", f"t-{i}") for i in range(5)))
    until("five run", lambda: len(service.runs()) == 5)

    for number in signals:
        worker.signal(number)
        until("it is not ready", lambda: worker.get("/readyz")[0] != 200)

    assert worker.wait() == 0
    assert service.states() == {"queued": 5}
    assert {row["attempt"] for row in service.rows("SELECT attempt FROM tasks")} == {0}
    service.gate.touch()
    service.start()
    service.until_states(succeeded=5)
    assert {row["attempt"] for row in service.rows("SELECT attempt FROM tasks")} == {1}
    assert set(service.runs().values()) == {2}


def test_a_daemon_stopped_before_the_database_is_there_exits_at_once(service: Service) -> None:
    service.database_url = "postgresql://postgres@127.0.0.1:1/nowhere"
    worker = service.start(ready=False)
    until("it waits", lambda: "waiting" in worker.log.read_text())

    worker.signal(signal.SIGTERM)

    assert worker.wait(30) == 0


def test_the_last_word_of_a_worker_is_that_it_is_dead(service: Service) -> None:
    worker = service.start()

    assert worker.stop() == 0

    (row,) = service.rows("SELECT dead_at FROM workers")
    assert row["dead_at"] is not None


def test_a_hurried_end_in_the_middle_of_claiming_charges_nothing_that_did_not_run(service: Service) -> None:
    worker = service.start(QUEUES="default:300")
    service.publish(*(message("double", f"t-{i}", {"x": i}) for i in range(1500)))

    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert "running" not in service.states()
    assert not service.rows("SELECT task_key FROM attempts WHERE outcome = 'crashed'")

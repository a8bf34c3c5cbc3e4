"""What a lost connection costs: nothing that runs is run again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker_worker.local import PrivateRabbitMQ
from tests.e2e.conftest import Service, message
from tests.support.daemon import until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def own_service(private_rabbitmq: PrivateRabbitMQ, database_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service on a RabbitMQ that the test may treat badly."""
    with ExitStack() as running:
        yield Service(private_rabbitmq.amqp_url(), database_url, "bw", tmp_path, running)


def know_its_queues(rabbitmq: PrivateRabbitMQ) -> None:
    """Have the list of quorum queues on disk: killed right after a declaration, RabbitMQ loses the queue."""
    rabbitmq.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")


def test_connections_closed_with_twenty_tasks_running_cause_no_second_run(
    own_service: Service, private_rabbitmq: PrivateRabbitMQ
) -> None:
    own_service.settings = {"QUEUES": "default:20"}
    worker = own_service.start()
    own_service.publish(*(message("gated", f"t-{i}") for i in range(20)))
    until("twenty run", lambda: len(own_service.runs()) == 20)

    private_rabbitmq.ctl("close_all_connections", "a test")
    until("the daemon noticed", lambda: "connection lost" in worker.log.read_text())
    worker.wait_ready()
    own_service.gate.touch()

    own_service.until_states(succeeded=20)
    own_service.until_rest()
    assert set(own_service.runs().values()) == {1}
    assert {row["attempt"] for row in own_service.rows("SELECT attempt FROM tasks")} == {1}


def test_a_broker_restarted_while_two_hundred_tasks_run_causes_no_second_run(
    own_service: Service, private_rabbitmq: PrivateRabbitMQ
) -> None:
    own_service.settings = {"QUEUES": "default:200"}
    worker = own_service.start()
    own_service.publish(*(message("gated", f"t-{i}") for i in range(200)))
    until("two hundred run", lambda: len(own_service.runs()) == 200)

    private_rabbitmq.restart()
    worker.wait_ready()
    own_service.gate.touch()

    own_service.until_states(succeeded=200)
    own_service.until_rest()
    assert set(own_service.runs().values()) == {1}


def test_a_broker_killed_while_tasks_fail_loses_no_retry(
    own_service: Service, private_rabbitmq: PrivateRabbitMQ
) -> None:
    worker = own_service.start(RETRY_DELAY="5s")  # time enough to see one wait
    own_service.publish(*(message("fails_once", f"t-{i}") for i in range(50)))
    until("some failed", lambda: own_service.states().get("retrying", 0) > 0)

    know_its_queues(private_rabbitmq)
    private_rabbitmq.kill()
    private_rabbitmq.start()
    worker.wait_ready()

    own_service.until_states(succeeded=50, seconds=150)
    assert max(own_service.runs().values()) <= 3


def test_a_deleted_queue_is_declared_again_and_consumed(
    own_service: Service, private_rabbitmq: PrivateRabbitMQ
) -> None:
    worker = own_service.start()

    private_rabbitmq.ctl("delete_queue", "bw.q.default")
    until("the daemon noticed", lambda: "consumer lost" in worker.log.read_text())
    worker.wait_ready()
    own_service.publish(message("double", "t-1", {"x": 1}))

    own_service.until_states(succeeded=1)


def test_a_daemon_waits_for_a_broker_that_is_not_there_yet(
    own_service: Service, private_rabbitmq: PrivateRabbitMQ
) -> None:
    private_rabbitmq.stop()
    worker = own_service.start(ready=False)
    until("it says what it waits for", lambda: worker.get("/readyz")[0] == 503)

    private_rabbitmq.start()

    worker.wait_ready()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0

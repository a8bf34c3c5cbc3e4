"""A daemon killed between any two steps: everything ends, charged right, and nothing is lost."""

from __future__ import annotations

import json
import signal

import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until
from tests.support.services import Broker, call_management

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("place", "runs", "attempt"),
    [
        ("claimed", 1, 2),  # charged, though its handler did not begin: nobody can know
        ("executed", 2, 2),
        ("recorded", 1, 1),
        ("acking", 1, 1),
    ],
)
def test_a_daemon_killed_on_the_path_leaves_a_task_that_another_finishes(
    service: Service, place: str, runs: int, attempt: int
) -> None:
    doomed = service.start(FAILPOINT=f"{place}:kill9")
    service.publish(message("double", "t-1", {"x": 21}))
    assert doomed.wait() == -signal.SIGKILL

    service.start()

    service.until_states(succeeded=1)
    service.until_rest()
    task = service.task("t-1")
    assert (task["attempt"], task["result"]) == (attempt, "42")
    assert service.runs() == {"t-1": runs}


def test_a_handler_that_kills_its_process_is_charged_and_run_again(service: Service) -> None:
    doomed = service.start()
    service.publish(message("kills_once", "t-1"))
    assert doomed.wait() == -signal.SIGKILL

    service.start()

    service.until_states(succeeded=1)
    service.until_rest()
    assert service.task("t-1")["attempt"] == 2
    assert service.runs() == {"t-1": 2}
    (crash,) = service.rows("SELECT attempt, outcome FROM attempts")
    assert (crash["attempt"], crash["outcome"]) == (1, "crashed")


def test_a_handler_that_always_kills_its_process_ends_as_a_dead_letter(service: Service) -> None:
    service.settings = {"MAX_ATTEMPTS": "1"}
    doomed = service.start()
    service.publish(message("kills_once", "t-1"))
    assert doomed.wait() == -signal.SIGKILL

    service.start()

    service.until_states(dead=1)
    service.until_rest()
    assert service.runs() == {"t-1": 1}
    (letter,) = service.rows("SELECT reason, attempt, body FROM dead_letters")
    assert (letter["reason"], letter["attempt"], letter["body"]) == ("crashed", 1, b"{}")


def test_a_daemon_killed_between_a_publish_and_its_delete_sends_a_copy_that_changes_nothing(
    service: Service,
) -> None:
    doomed = service.start(FAILPOINT="copy_confirmed:kill9")
    service.publish(message("fails_once", "t-1"))
    assert doomed.wait() == -signal.SIGKILL
    assert len(service.rows("SELECT id FROM outbox")) == 1

    service.start()

    service.until_states(succeeded=1)
    service.until_rest()
    assert service.task("t-1")["attempt"] == 2
    assert service.runs() == {"t-1": 2}


def test_a_bystander_of_a_crash_is_charged_once_and_succeeds(service: Service) -> None:
    doomed = service.start()
    service.publish(*(message("gated", f"bystander-{i}") for i in range(5)))
    until("five run", lambda: len(service.runs()) == 5)
    service.publish(message("kills_once", "crasher"))
    assert doomed.wait() == -signal.SIGKILL
    service.gate.touch()

    service.start()

    service.until_states(succeeded=6, seconds=150)
    assert {row["attempt"] for row in service.rows("SELECT attempt FROM tasks")} == {2}


def test_what_shared_a_prefetch_with_crashers_outlives_the_brokers_delivery_limit(
    service: Service, broker: Broker
) -> None:
    if broker.management_url is None:
        pytest.fail("this test sets a policy: it needs the HTTP API of RabbitMQ", pytrace=False)
    assert service.start().stop() == 0  # the queue is there
    policy = {"pattern": rf"^{broker.prefix}\.q\.", "definition": {"delivery-limit": 1}, "apply-to": "queues"}
    path = f"/api/policies/{broker.vhost}/limit-{broker.prefix}"
    call_management(broker.management_url, "PUT", path, json.dumps(policy).encode())
    service.publish(*(message("gated", f"bystander-{i}") for i in range(5)))
    undecided = "claiming:hang,received:kill9:5"
    for failpoint in ("claimed:kill9:5", undecided, undecided):  # the first time while they run
        doomed = service.start(ready=False, FAILPOINT=failpoint)
        assert doomed.wait() == -signal.SIGKILL
    dead = f"/api/queues/{broker.vhost}/{broker.prefix}.dead.default"
    url = broker.management_url
    until(
        "the broker gave them up", lambda: json.loads(call_management(url, "GET", dead)).get("messages") == 5
    )
    service.gate.touch()

    service.start()

    service.until_states(succeeded=5, seconds=150)
    service.until_rest()
    assert max(row["attempt"] for row in service.rows("SELECT attempt FROM tasks")) == 2
    assert not service.rows("SELECT id FROM dead_letters")

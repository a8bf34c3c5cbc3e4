"""Several daemons and several services beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tests.e2e.conftest import Service, message
from tests.support.services import RunningServers, fresh_database

pytestmark = pytest.mark.timeout(240)


def test_two_daemons_share_a_queue_and_run_each_task_once(service: Service) -> None:
    service.settings = {"QUEUES": "default:8"}
    service.start()
    service.start()

    service.publish(*(message("in_thread", f"t-{i}", {"x": i}) for i in range(300)))

    service.until_states(succeeded=300)
    service.until_rest()
    assert len(service.runs()) == 300
    assert set(service.runs().values()) == {1}
    assert len(service.rows("SELECT DISTINCT worker FROM tasks")) == 2


def test_two_services_on_one_vhost_see_nothing_of_each_other(
    service: Service,
    other_service: Callable[[str, Mapping[str, str]], Service],
    running_servers: RunningServers,
) -> None:
    with fresh_database(running_servers) as database_url:
        other = other_service(database_url, {"QUEUES": "reports"})
        service.start()
        other.start()

        service.publish(message("double", "a-1", {"x": 1}), message("fails_once", "a-2"), queue="default")
        other.publish(message("double", "b-1", {"x": 1}), message("gives_up", "b-2"), queue="reports")

        service.until_states(succeeded=2)
        other.until_states(succeeded=1, dead=1)
        assert not service.rows("SELECT id FROM dead_letters")
        assert len(other.rows("SELECT id FROM dead_letters")) == 1


def test_a_failed_task_comes_back_and_its_history_is_kept(service: Service) -> None:
    service.start()

    service.publish(message("asks_again", "t-1"))

    service.until_states(succeeded=1)
    assert service.task("t-1")["attempt"] == 3
    attempts = service.rows("SELECT attempt, outcome, error_type FROM attempts ORDER BY attempt")
    assert [(row["attempt"], row["outcome"]) for row in attempts] == [(1, "failed"), (2, "failed")]
    assert not service.rows("SELECT task_key FROM payloads")

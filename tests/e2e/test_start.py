"""What every start of the daemon pays for: only what a daemon needs."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Service, message

pytestmark = pytest.mark.timeout(300)

NOT_FOR_A_DAEMON = (
    "alembic",
    "mako",
    "pytest",
    "broker_worker.client",
    "broker_worker.local",
    "broker_worker.store.dead_letters",
    "broker_worker.store.listing",
    "broker_worker.store.migration",
    "broker_worker.testing",
)


def imported(log: str) -> set[str]:
    """Every module that was imported, with the packages that it is in, as the interpreter reports them."""
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_a_daemon_on_an_up_to_date_schema_imports_nothing_that_only_others_need(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    worker = service.start(AUTO_MIGRATE="true")
    service.publish(message("double", "t-1", {"x": 1}))
    service.until_states(succeeded=1)

    found = imported(worker.log.read_text())

    assert "broker_worker.store.outcomes" in found
    assert sorted(found.intersection(NOT_FOR_A_DAEMON)) == []

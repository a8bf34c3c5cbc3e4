from __future__ import annotations

import pytest

from broker_worker.amqp.patience import REPORT_INTERVAL, Reports


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [0.0]
    monkeypatch.setattr("broker_worker.amqp.patience.time.monotonic", lambda: moment[0])
    return moment


def test_a_fault_that_lasts_is_told_once_a_minute(now: list[float]) -> None:
    reports, told = Reports(), 0

    for _ in range(int(3 * REPORT_INTERVAL)):
        told += reports.is_due()
        now[0] += 1

    assert told == 3


@pytest.mark.usefixtures("now")
def test_a_fault_of_another_kind_is_told_at_once() -> None:
    reports = Reports()

    assert [reports.is_due(code) for code in (None, None, 403, 403)] == [True, False, True, False]

"""Whatever a handler raises or returns: it becomes an outcome with its reason, once, and others go on."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Service, message
from tests.hostile.errors import EITHER, RAISED, RETURNED
from tests.support.daemon import until

WAYS = ("on_the_loop", "in_a_thread", "in_a_process")
REFUSALS = {"result_unserialisable", "result_too_large"}

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("way", WAYS)
def test_each_error_and_each_result_ends_its_task_once_and_those_behind_it_are_done(
    service: Service, way: str
) -> None:
    worker = service.start(HANDLERS="tests.hostile.failing_handlers")
    cases = [*RAISED, *RETURNED]
    service.publish(*(message(way, case, {"case": case}) for case in cases))
    service.publish(*(message("well", f"good {n}", {"case": str(n)}) for n in range(100)))

    ended = "SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL"
    until(
        "every task has ended",
        lambda: service.rows(ended)[0]["count"] == len(cases) + 100,
        seconds=150,
    )
    service.until_rest()
    rows = {row["message_id"]: row for row in service.rows("SELECT * FROM tasks")}
    assert [case for case in RAISED if rows[case]["state"] != "dead"] == []
    unkept = [case for case in RETURNED if rows[case]["reason"] not in REFUSALS]
    assert set(unkept) <= EITHER
    assert all(rows[f"good {n}"]["state"] == "succeeded" for n in range(100))
    letters = service.rows("SELECT message_id, count(*) FROM dead_letters GROUP BY 1")
    dead = {case for case in cases if rows[case]["state"] == "dead"}
    assert {letter["message_id"] for letter in letters} == dead
    assert all(letter["count"] == 1 for letter in letters)
    assert all(rows[case]["attempt"] == 1 for case in cases)
    assert all(rows[case]["error_type"] for case in dead)
    assert worker.stop() == 0
    assert not [line for line in worker.lines() if line.get("event") == "service_failed"]

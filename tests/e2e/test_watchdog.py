"""A handler that blocks the event loop by mistake is seen: in the log, and by the liveness probe."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import DaemonProcess, until

pytestmark = pytest.mark.timeout(240)


def said(worker: DaemonProcess, text: str) -> list[dict[str, object]]:
    return [line for line in worker.lines() if line["message"] == text]


def test_a_blocked_loop_is_named_and_fails_the_probe_until_it_turns_again(service: Service) -> None:
    worker = service.start(HANDLERS="tests.support.blocking_handlers", BLOCKED_LOOP_LIMIT="2s")
    before = len(said(worker, "event loop blocked"))  # by a start on a busy machine
    service.publish(message("blocks", "t-1"))

    until("it is said", lambda: said(worker, "event loop blocked")[before:])
    until("the probe fails", lambda: worker.get("/livez")[0] == 503)
    service.gate.touch()
    until("the probe passes", lambda: worker.get("/livez")[0] == 200)
    turning, *_ = until("it is said", lambda: said(worker, "event loop turns again")[before:])

    blocked, *others = said(worker, "event loop blocked")[before:]
    assert others == []
    assert blocked["level"] == "warning"
    assert blocked["running"] == "blocks t-1"
    first, *_ = str(blocked["stack"]).splitlines()
    assert first.endswith("in blocks")
    assert "in wait_for_the_gate" in str(blocked["stack"])
    assert float(str(turning["stood_s"])) >= 2
    service.until_states(succeeded=1)


def test_a_worker_that_was_suspended_is_alive_and_blames_nobody(service: Service) -> None:
    worker = service.start(BLOCKED_LOOP_LIMIT="2s")
    before = said(worker, "event loop blocked")  # by a start on a busy machine

    worker.signal(signal.SIGSTOP)
    status = Path(f"/proc/{worker.process.pid}/stat")
    until("it is stopped", lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
    unanswered, _ = worker.get("/livez")  # gives up after 5 s
    worker.signal(signal.SIGCONT)
    answered = until("it answers", lambda: worker.get("/livez")[0])

    assert (unanswered, answered) == (0, 200)
    worker.stop()
    assert said(worker, "event loop blocked") == before

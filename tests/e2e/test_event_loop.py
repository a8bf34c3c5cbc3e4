"""On which event loop the daemon runs."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Service, message

pytestmark = pytest.mark.timeout(300)


def loop_of(service: Service) -> str:
    """The package of the loop that a daemon's handlers run on."""
    service.start(HANDLERS="tests.support.loop_handlers")
    service.publish(message("which_loop", "t-1"))
    service.until_states(succeeded=1)
    found: str = json.loads(service.task("t-1")["result"])
    return found


def test_the_daemon_runs_on_uvloop_where_that_is_installed(service: Service) -> None:
    assert loop_of(service) == "uvloop"


def test_the_daemon_runs_on_asyncios_loop_where_uvloop_is_missing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    (service.folder / "uvloop.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(service.folder))

    assert loop_of(service) == "asyncio"

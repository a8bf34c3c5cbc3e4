"""A small run of `make chaos`: real servers, three daemons, ten faults, and all that the checker asks for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.results import innocent_deaths
from tests.faults.runner import Plan, run
from tests.faults.schedule import KIND_BY_NAME, schedule

pytestmark = pytest.mark.timeout(600)

SEED, SECONDS = 11, 15.0
QUICK = (  # kinds that are over at once; the others have an hour in `make chaos`
    "worker_kill",
    "relay_kill",
    "amqp_reset",
    "ack_reset",
    "confirms_lost",
    "connection_close",
    "postgres_terminate",
    "commit_swallowed",
    "commit_lost",
    "publisher_reset",
)


def test_nothing_is_lost_or_done_twice_while_everything_is_killed_and_cut_off(tmp_path: Path) -> None:
    kinds = [KIND_BY_NAME[name] for name in QUICK]
    faults = schedule(SEED, seconds=SECONDS, faults=len(QUICK), kinds=kinds, minimum=1)
    plan = Plan(
        seed=SEED,
        messages=1000,
        faults=faults,
        seconds=SECONDS,
        warm=2.0,
        longest_drain=300.0,  # the relay comes back after two minutes to what it could not delete
        recovery=30.0,  # on a machine that other tests keep busy
        fsync=False,
    )

    ran = asyncio.run(run(plan, tmp_path))

    assert ran.verdict.is_clean, (tmp_path / "report.txt").read_text()
    assert ran.recording.about.has_quiet_end
    assert innocent_deaths(ran.recording) == []
    assert (sum(ran.done.values()), ran.not_done) == (len(QUICK), {})
    assert ran.verdict.figures["publishes"]["ok"] >= 1000

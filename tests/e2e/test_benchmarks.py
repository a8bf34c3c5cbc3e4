"""The benchmarks work: everyone does its share of 2,000 messages, each measure finds its figures."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measures
from benchmarks.contestant import Contestant
from benchmarks.contestants import LOOPS, OURS
from benchmarks.peers import PEERS
from broker_worker.local import Servers
from broker_worker.local.servers import AMQP_URL, DATABASE_URL, MANAGEMENT_URL

CHECKOUT = Path(__file__).parents[2]
Document = dict[str, dict[str, dict[str, object]]]


def benchmarks(servers: Servers, folder: Path, *, only: str, measured: str) -> Document:
    """Run them on the servers of the tests; what they wrote."""
    written = folder / "latest.json"
    given = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    given |= {AMQP_URL: servers.amqp_url, DATABASE_URL: servers.database_url}
    given |= {MANAGEMENT_URL: servers.management_url} if servers.management_url else {}
    arguments = ["--smoke", "--only", only, "--measures", measured, "--output", str(written)]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=CHECKOUT,
        env=given,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    document: Document = json.loads(written.read_text())
    return document


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "group", [LOOPS, OURS, PEERS], ids=["the bare loops", "broker_worker in all its ways", "the peers"]
)
def test_every_contestant_does_its_work(
    group: tuple[Contestant, ...], servers: Servers, tmp_path: Path
) -> None:
    names = {each.name for each in group}

    document = benchmarks(servers, tmp_path, only=",".join(names), measured="none")

    assert names <= set(document["contestants"])
    assert all(row["rounds"] for row in document["contestants"].values())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("measure", [module.name for module in pkgutil.iter_modules(measures.__path__)])
def test_every_further_measure_finds_its_figures(measure: str, servers: Servers, tmp_path: Path) -> None:
    document = benchmarks(servers, tmp_path, only="none", measured=measure)

    assert document["measures"]
    assert all(figure["unit"] for figure in document["measures"].values())

"""A process under its keeper, as `broker-worker dev` keeps its daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker_worker.local.process import KeptProcess, Program

pytestmark = pytest.mark.timeout(180)

OWNER = """
import os, sys
from broker_worker.local.process import KeptProcess, Program
code = "print('here', flush=True); import time; time.sleep(600)"
command = [sys.executable, "-c", code]
kept = KeptProcess(Program(command=command, environment=os.environ, folder=None, log=None))
sys.stdin.read()
"""
STUBBORN = """
import signal
def asked(*_):
    print("asked", flush=True)
    if signals.pop():
        raise SystemExit(7)
signals = [True, False]
signal.signal(signal.SIGTERM, asked)
print("here", flush=True)
while True:
    signal.pause()
"""


def test_one_without_a_folder_runs_in_ours_and_leaves_it_when_its_owner_is_killed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        first = owner.stdout.readline()
        owner.kill()
        rest = owner.stdout.read()  # ends when the last of them has ended

    assert (first, rest) == (b"here\n", b"")
    assert (tmp_path / "precious").exists()


def test_one_that_is_asked_again_gets_the_signal_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", STUBBORN]
    process = KeptProcess(Program(command=command, environment=os.environ, folder=None, log=log))
    with log.open() as said:
        while "here" not in said.read():
            pass
        process.ask()
        while "asked" not in said.read():
            pass
        is_running = process.is_running()
        process.ask()

    assert is_running
    assert process.wait(60) == 7

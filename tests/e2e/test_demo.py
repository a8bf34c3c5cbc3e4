"""The demo, as people run it: everything of its own, in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TOTALS = re.compile(
    r"^published (\d+) = succeeded (\d+) \+ dead (\d+) \+ expired (\d+) \+ duplicates (\d+)$", re.MULTILINE
)


@contextmanager
def demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "examples.demo"],
        cwd=CHECKOUT,
        env={**given, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where its temporary files go. Not below pytest's: Postgres runs as a user who may not go there."""
    with tempfile.TemporaryDirectory(prefix="broker-worker-test-demo-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.timeout(400)
def test_the_demo_accounts_for_everything_and_leaves_nothing_behind(folder: Path) -> None:
    with demo(folder) as process:
        said, _ = process.communicate(timeout=380)

    assert process.returncode == 0, said
    found = TOTALS.search(said)
    assert found, said
    published, *ended = map(int, found.groups())
    assert published >= 300
    assert published == sum(ended)
    assert all(ended)
    assert list(folder.iterdir()) == []


@pytest.mark.timeout(400)
def test_ctrl_c_in_the_middle_of_the_work_leaves_nothing_behind(folder: Path) -> None:
    with demo(folder) as process:
        assert process.stdout is not None
        seen = [line for line in iter(process.stdout.readline, "") if _interrupt_at_work(process, line)]
        process.wait(120)

    assert process.returncode == 130, seen
    assert list(folder.iterdir()) == []


def _interrupt_at_work(process: subprocess.Popen[str], line: str) -> bool:
    """Press Ctrl-C when the first tasks have succeeded: for the whole group, as a terminal does."""
    if re.search(r"succeeded +[1-9]", line):
        os.killpg(process.pid, signal.SIGINT)
    return True

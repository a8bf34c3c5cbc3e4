"""The small examples do what they say, without any server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[3]


def output_of(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ways_to_run", ["fetched on MainThread", "text.count: succeeded: 4", "'prime': True", "hello, Ada"]),
        (
            "failing",
            [
                "paid already: dead gave_up; waits: none",
                "soon: succeeded charged at attempt 2; waits: 30 s",
                "limited: succeeded charged at attempt 3; waits: 3600 s, 3600 s",
                "flaky: succeeded charged at attempt 4",
                "broken: dead gave_up; waits: none",
                "hopeless: dead attempts_exhausted",
            ],
        ),
        (
            "limits_of_time",
            ["short: succeeded 50 after 1", "long: dead timeout after 2", "quote: dead timeout"],
        ),
        ("resources", ["opened\npage.fetch", "/users/ada, request 2\nconnection closed"]),
        ("going_on", ["attempt 2 began at row 600"]),
        (
            "cancelling",
            [
                "video.encode: cancelled after 1 attempts",
                "archive.unpack: cancelled after 1 attempts",
                "video.encode: cancelled after 0 attempts",
            ],
        ),
        ("sending", ["invoice.write: succeeded", "order.remind: succeeded", "event order.booked to shop"]),
        (
            "middleware",
            [
                "number.divide, attempt 1: Succeeded, at once",
                "reported: ZeroDivisionError('division by zero')",
            ],
        ),
    ],
)
def test_an_example_does_what_it_says(name: str, says: list[str]) -> None:
    shown = output_of("-m", f"examples.{name}")

    assert [line for line in says if line not in shown] == []


def test_the_example_of_a_test_passes_with_nothing_but_the_plugin(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "test_greeting.py", tmp_path)
    shown = output_of("-m", "pytest", f"--rootdir={tmp_path}", str(tmp_path), "-p", "no:asyncio")

    assert "3 passed" in shown

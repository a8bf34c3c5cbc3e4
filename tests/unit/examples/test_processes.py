from __future__ import annotations

import sys
from pathlib import Path

import pytest

from examples.demo.processes import ProcessFailedError, child

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_the_output_of_a_process_comes_with_its_end(tmp_path: Path) -> None:
    with child("one", python("print('done')"), ENVIRONMENT, folder=tmp_path) as process:
        assert await process.output(within=20) == "done\n"


async def test_a_process_that_fails_is_shown_with_what_it_said_last(tmp_path: Path) -> None:
    code = "import sys; print('why', file=sys.stderr); sys.exit(3)"

    with (
        child("one", python(code), ENVIRONMENT, folder=tmp_path) as process,
        pytest.raises(ProcessFailedError, match=r"one ended with the exit code 3\n  why"),
    ):
        await process.output(within=20)


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    )

    with child("one", python(code), ENVIRONMENT, folder=tmp_path) as process:
        while not (tmp_path / "one.out").read_text():
            process.require_running()
        code_at_the_end = process.stop(within=0.1)

    assert code_at_the_end == -9

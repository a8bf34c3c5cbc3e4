"""The pytest plugin, in a pytest of its own: with pytest-asyncio in each mode, and without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

HANDLERS = """
import asyncio
from broker_worker import Context, Registry
registry = Registry()

@registry.task("rests")
async def rests(seconds: float, context: Context) -> int:
    await asyncio.sleep(seconds)
    if context.attempt == 1:
        raise ConnectionError("once")
    return context.max_attempts
"""
TEST = """
import asyncio
import pytest
from my_handlers import rests

@pytest.fixture
def seconds():
    return 300

async def test_it(harness, seconds):
    id_ = await harness.publish(rests, {"seconds": seconds})
    await asyncio.sleep(1)
    await harness.drain()
    assert harness.task(id_).result == 12

class TestInAClass:
    @pytest.mark.parametrize("queue", ["a", "b"])
    @pytest.mark.broker_worker(queues=("a", "b"), max_attempts=3)
    async def test_it(self, harness, queue):
        id_ = await harness.publish(rests, {"seconds": 60}, queue=queue)
        await harness.drain()
        assert harness.task(id_).result == 3
"""
OPTION = """
[pytest]
broker_worker_handlers = my_handlers
filterwarnings = error::RuntimeWarning
"""


def run(folder: Path, *arguments: str, **files: str) -> tuple[int, str]:
    """Run pytest as a user does, with nothing of ours but the plugin."""
    for name, text in {"my_handlers.py": HANDLERS, "pytest.ini": OPTION, **_named(files)}.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "broker_worker.testing.plugin", *_without(), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def _named(files: dict[str, str]) -> dict[str, str]:
    return {"pytest.ini" if name == "ini" else f"{name}.py": text for name, text in files.items()}


def _without() -> list[str]:
    """Once is enough: where the project is installed with its entry point, that one is left out."""
    return ["-p", "no:broker_worker", "-p", "no:cacheprovider"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "asyncio_mode=strict"),
        ("-o", "asyncio_mode=auto"),
        ("-p", "no:asyncio"),
    ],
    ids=["strict", "auto", "without pytest-asyncio"],
)
def test_a_test_with_the_fixture_runs_in_virtual_time(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, output = run(tmp_path, *arguments, test_mine=TEST)

    assert code == 0, output
    assert "3 passed" in output


def test_a_test_with_the_mark_of_pytest_asyncio_runs_in_virtual_time_as_well(tmp_path: Path) -> None:
    marked = TEST.replace("async def test_it(harness", "@pytest.mark.asyncio\nasync def test_it(harness")

    code, output = run(tmp_path, test_mine=marked)

    assert code == 0, output


def test_a_failing_test_fails(tmp_path: Path) -> None:
    code, output = run(tmp_path, test_mine="async def test_it(harness):\n    assert harness.tasks() == [1]\n")

    assert code == 1
    assert "assert [] == [1]" in output


def test_a_plain_test_is_told_to_be_async(tmp_path: Path) -> None:
    code, output = run(tmp_path, test_mine="def test_it(harness):\n    pass\n")

    assert code == 1
    assert "test_it asks for the harness: it has to be an async def" in output


def test_a_decorator_of_the_test_is_not_lost(tmp_path: Path) -> None:
    patched = """
import unittest.mock

@unittest.mock.patch("os.sep", "patched")
async def test_it(harness):
    import os
    assert os.sep == "patched"
"""

    code, output = run(tmp_path, "-o", "asyncio_mode=auto", test_mine=patched)

    assert code == 0, output


def test_without_handlers_the_two_ways_to_name_them_are_told(tmp_path: Path) -> None:
    code, output = run(tmp_path, ini="[pytest]\n", test_mine="async def test_it(harness):\n    pass\n")

    assert code == 1
    assert "broker_worker_handlers = <module>" in output
    assert "fixture broker_worker_registry" in output


def test_registry_and_options_may_come_from_fixtures(tmp_path: Path) -> None:
    conftest = """
import pytest
import my_handlers

@pytest.fixture
def broker_worker_registry():
    return my_handlers.registry

@pytest.fixture
def broker_worker_options():
    return {"max_attempts": 5, "queues": {"default": 2}}
"""
    test = TEST.replace("== 12", "== 5")

    code, output = run(tmp_path, ini="[pytest]\n", conftest=conftest, test_mine=test)

    assert code == 0, output


def test_another_fixture_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    own = """
import pytest

@pytest.fixture
def harness():
    return "mine"

def test_it(harness):
    assert harness == "mine"
"""

    code, output = run(tmp_path, test_mine=own)

    assert code == 0, output


def test_loading_the_plugin_imports_nothing_of_the_worker() -> None:
    program = "import sys; import broker_worker.testing.plugin; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    costly = {"broker_worker.testing.harness", "broker_worker.worker", "sqlalchemy", "aio_pika", "structlog"}
    assert costly.isdisjoint(loaded.stdout.split())

"""`broker-worker dev`, as a developer uses it: one command, an editor, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker_worker.local.keeper import descendants
from tests.e2e.conftest import Service, message
from tests.support.daemon import ROOT, until

pytestmark = pytest.mark.timeout(400)

JOBS = """
from broker_worker import Registry

registry = Registry()


@registry.task("greet", max_attempts=2)
async def greet(name: str) -> str:
    if name == "nobody":
        raise LookupError("there is no such person")
    return f"{word} {{name}}"
"""
GATED = """
import asyncio
from broker_worker import Registry

registry = Registry()


@registry.task("gated")
async def gated() -> None:
    print("the gate is shut")
    await asyncio.Event().wait()
"""


class Dev:
    """One running `broker-worker dev` in a project's folder."""

    def __init__(self, project: Path, environment: Mapping[str, str]) -> None:
        self.project = project
        self.log = project / "log"
        given = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
        self.environment = {
            **given,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "BROKER_WORKER_HTTP_BIND": "off",
            **environment,
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "broker_worker", "dev", "--handlers", "jobs"],
                cwd=project,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log.read_text())

    def until_said(self, pattern: str, *, times: int = 1) -> None:
        def is_said() -> bool:
            return len(self.said(pattern)) >= times

        try:
            until(f"{times} times {pattern!r}", is_said, seconds=120)
        except AssertionError as error:
            error.add_note(self.log.read_text()[-4000:])
            raise

    def until_serving(self, *, times: int) -> None:
        self.until_said(r"consuming .* queue=default", times=times)

    def descendants(self) -> list[int]:
        return descendants(self.process.pid)


@contextmanager
def dev(project: Path, environment: Mapping[str, str]) -> Iterator[Dev]:
    running = Dev(project, environment)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # of a container whose first process reaps nobody


def until_gone(pids: list[int]) -> None:
    until("no process is left", lambda: not [pid for pid in pids if is_alive(pid)])


def results(service: Service) -> dict[str, str]:
    rows = service.rows("SELECT message_id, result FROM tasks WHERE state = 'succeeded'")
    return {row["message_id"]: row["result"] for row in rows}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def test_an_edited_handler_is_what_runs_next_and_a_broken_one_is_waited_for(
    service: Service, project: Path
) -> None:
    jobs = project / "jobs.py"
    jobs.write_text(JOBS.format(word="hello"))
    servers = {
        "BROKER_WORKER_LOCAL_AMQP_URL": service.amqp_url,
        "BROKER_WORKER_LOCAL_DATABASE_URL": service.database_url,
        "BROKER_WORKER_PREFIX": service.prefix,
    }

    with dev(project, servers) as running:
        running.until_serving(times=1)
        service.publish(message("greet", "t-1", {"name": "Ada"}))
        until("the first is done", lambda: "t-1" in results(service))

        jobs.write_text(JOBS.format(word="good evening"))
        running.until_serving(times=2)
        service.publish(message("greet", "t-2", {"name": "Ada"}))
        until("the second is done", lambda: "t-2" in results(service))

        jobs.write_text("def broken(:")
        running.until_said("dev: the daemon has ended; it starts again when a file changes")
        jobs.write_text(JOBS.format(word="good night"))
        running.until_serving(times=3)
        service.publish(message("greet", "t-3", {"name": "Ada"}))
        until("the third is done", lambda: "t-3" in results(service))
        processes = running.descendants()

        running.process.send_signal(signal.SIGTERM)
        status = running.process.wait(120)

    assert results(service) == {
        "t-1": '"hello Ada"',
        "t-2": '"good evening Ada"',
        "t-3": '"good night Ada"',
    }
    assert running.said("SyntaxError")
    assert status == 0
    assert len(processes) >= 2  # the daemon and its keeper
    until_gone(processes)


def test_a_failed_attempt_is_shown_with_its_traceback(service: Service, project: Path) -> None:
    (project / "jobs.py").write_text(JOBS.format(word="hello"))
    servers = {
        "BROKER_WORKER_LOCAL_AMQP_URL": service.amqp_url,
        "BROKER_WORKER_LOCAL_DATABASE_URL": service.database_url,
        "BROKER_WORKER_PREFIX": service.prefix,
    }

    with dev(project, servers) as running:
        running.until_serving(times=1)
        service.publish(message("greet", "t-1", {"name": "nobody"}))
        running.until_said("attempt failed.*\n")
        running.until_said("\n    LookupError: there is no such person\n")
        said = running.log.read_text()

    _, _, shown = said.partition("attempt failed")
    _, *lines = shown.splitlines()
    assert lines[0] == "    Traceback (most recent call last):"
    assert lines[1].endswith(", in greet")
    assert lines[2] == '        raise LookupError("there is no such person")'
    assert lines[3] == "    LookupError: there is no such person"


def test_servers_that_are_named_are_taken_and_a_second_ctrl_c_waits_for_no_task(
    service: Service, project: Path
) -> None:
    (project / "jobs.py").write_text(GATED)
    settings = {**service.environment(SHUTDOWN_GRACE="1h"), "BROKER_WORKER_HANDLERS": "other"}

    with dev(project, settings) as running:
        running.until_serving(times=1)
        service.publish(message("gated", "t-1"))
        running.until_said("the gate is shut")
        running.process.send_signal(signal.SIGINT)
        running.until_said("worker draining")
        running.process.send_signal(signal.SIGINT)
        status = running.process.wait(120)

    assert status == 0
    assert running.said("as given in BROKER_WORKER_AMQP_URL")
    assert running.said("as given in BROKER_WORKER_DATABASE_URL")
    assert not running.said("amqp://")
    assert service.states() == {"queued": 1}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where its servers live. Not below pytest's: Postgres runs as a user who may not go there."""
    with tempfile.TemporaryDirectory(prefix="broker-worker-test-dev-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name
)
def test_everything_of_its_own_ends_with_it(project: Path, temporary: Path, number: signal.Signals) -> None:
    (project / "jobs.py").write_text(JOBS.format(word="hello"))

    with dev(project, {"TMPDIR": str(temporary)}) as running:
        running.until_serving(times=1)
        (publish,) = running.said(r"publish +(BROKER_WORKER_AMQP_URL=.*)\n")
        (look,) = running.said(r"look +(BROKER_WORKER_DATABASE_URL=.*)\n")
        subprocess.run(publish, shell=True, env=running.environment, check=True, timeout=60)
        look = f"{look} --state succeeded --json"

        def succeeded() -> bytes:
            environment = running.environment
            return subprocess.run(
                look, shell=True, env=environment, check=True, timeout=60, capture_output=True
            ).stdout

        until("it is handled", succeeded)
        processes = running.descendants()

        running.process.send_signal(number)
        status = running.process.wait(120)

    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    assert len(processes) > 5
    until_gone(processes)
    until("no file is left", lambda: not list(temporary.iterdir()))
    assert (project / "jobs.py").exists()


def test_ctrl_c_while_servers_start_leaves_nothing_behind(project: Path, temporary: Path) -> None:
    (project / "jobs.py").write_text(JOBS.format(word="hello"))

    with dev(project, {"TMPDIR": str(temporary)}) as running:
        running.until_said("starting servers")
        processes = until("they start", running.descendants)
        running.process.send_signal(signal.SIGINT)
        status = running.process.wait(120)

    assert status == 0
    until_gone(processes)
    until("no file is left", lambda: not list(temporary.iterdir()))

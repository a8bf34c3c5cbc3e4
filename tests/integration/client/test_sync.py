"""The client of programs that have no event loop: scripts, threads, servers that fork."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from broker_worker.client import NoSuchTaskError, SyncClient, TaskState
from broker_worker.errors import BrokerWorkerError, ConfigurationError
from tests.integration.client.conftest import Mail, Rabbit, registry, send_mail
from tests.support.daemon import ROOT, until
from tests.support.inbox import a_message, opened

# what asyncio says of a busy machine, where Python is in its development mode
TOOK_LONG = re.compile(r"^Executing <.*> took \d+\.\d+ seconds\n", re.MULTILINE)


def sync_client(rabbit: Rabbit, database_url: str | None = None) -> SyncClient:
    return SyncClient(amqp_url=rabbit.url, prefix=rabbit.prefix, database_url=database_url, registry=registry)


def script(source: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a program of a user's."""
    file = folder / "script.py"
    file.write_text(source)
    base = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    ours = {f"BROKER_WORKER_{name}": value for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", str(file)],
        env={**base, **ours, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(program: subprocess.Popen[str]) -> str:
    """Wait for a program's end, which has to be a success; what it said itself."""
    try:
        output, _ = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 0, output
    return TOOK_LONG.sub("", output)


async def ids_in(rabbit: Rabbit) -> set[str]:
    return {task.headers["bw-task-id"] for task in await rabbit.received()}


async def test_it_works_inside_a_running_loop(rabbit: Rabbit, database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message("t-1"), "7")
        await inbox.postpone(a_message("t-2"))

        with sync_client(rabbit, database_url) as client:  # each call blocks this test's loop
            client.publish(send_mail, Mail(to="ada"), id="t-3")
            is_cancelled = client.cancel("t-2")
            statuses = [client.status("t-1"), client.wait("t-2", timeout=20)]

    assert is_cancelled
    assert [status.state for status in statuses if status] == [TaskState.SUCCEEDED, TaskState.CANCELLED]
    assert await ids_in(rabbit) == {"t-3"}


async def test_any_thread_may_use_it(rabbit: Rabbit) -> None:
    with sync_client(rabbit) as client, ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(lambda number: client.publish("report", number), range(100)))

    assert await ids_in(rabbit) == set(ids)


def test_errors_are_raised_where_it_was_called(database_url: str) -> None:
    with SyncClient(database_url=database_url) as client:
        with pytest.raises(NoSuchTaskError):
            client.cancel("t-1")
        with pytest.raises(TimeoutError, match="has not ended"):
            client.wait("t-1", timeout=0.1)
        with pytest.raises(ConfigurationError, match="BROKER_WORKER_AMQP_URL"):
            client.publish("report")


def test_its_thread_ends_with_it(database_url: str) -> None:
    client = SyncClient(database_url=database_url)
    client.status("t-1")
    [thread] = [each for each in threading.enumerate() if each.name == "broker_worker client"]

    client.close()

    assert not thread.is_alive()
    with pytest.raises(BrokerWorkerError, match="the client is closed"):
        client.status("t-1")
    client.close()


def test_its_thread_ends_when_nobody_has_it_any_more(database_url: str) -> None:
    client = SyncClient(database_url=database_url)
    client.status("t-1")
    [thread] = [each for each in threading.enumerate() if each.name == "broker_worker client"]

    del client
    gc.collect()

    until("the thread has ended", lambda: not thread.is_alive(), seconds=20)


def test_closing_ends_the_calls_of_other_threads(database_url: str) -> None:
    client = SyncClient(database_url=database_url, amqp_url="amqp://127.0.0.1:1/")
    with ThreadPoolExecutor(2) as threads:
        calls: list[Future[object]] = [
            threads.submit(lambda: client.wait("t-1")),
            threads.submit(lambda: client.publish("report")),
        ]
        until("both are under way", lambda: len(client._home._calls) == 2)

        client.close()

        for call in calls:
            with pytest.raises(BrokerWorkerError, match="the client was closed meanwhile"):
                call.result(20)


def test_a_client_that_was_never_used_is_closed_without_a_thread() -> None:
    before = threading.active_count()
    with SyncClient():
        assert threading.active_count() == before


FORKING = """
import os
from broker_worker.client import SyncClient

client = SyncClient.from_environment()
client.publish("report", id="parent-1")
assert client.status("t-1") is None
children = []
for number in range(3):
    if (child := os.fork()) == 0:
        client.publish("report", id=f"child-{number}")
        assert client.status("t-1") is None
        client.close()
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
client.publish("report", id="parent-2")
assert client.status("t-1") is None
print("done")
"""


async def test_after_a_fork_parent_and_children_go_on(
    rabbit: Rabbit, database_url: str, tmp_path: Path
) -> None:
    program = script(FORKING, tmp_path, AMQP_URL=rabbit.url, PREFIX=rabbit.prefix, DATABASE_URL=database_url)

    output = await asyncio.to_thread(said, program)

    assert output.endswith("done\n")  # a busy machine has asyncio say what took long
    assert await ids_in(rabbit) == {"parent-1", "parent-2", "child-0", "child-1", "child-2"}


FORKING_WITHOUT_A_WORD = """
import os, sys
from broker_worker.client import SyncClient

client = SyncClient.from_environment()
client.publish("report", id="parent-1")
client._home._lock.acquire()  # as another thread does in the middle of a call
if os.fork() == 0:
    sys.exit(0)  # an orderly end, with all that happens there
client._home._lock.release()
os.wait()
client.publish("report", id="parent-2")
print("done")
"""


async def test_a_child_that_ends_leaves_its_parent_s_connections_alone(
    rabbit: Rabbit, tmp_path: Path
) -> None:
    program = script(FORKING_WITHOUT_A_WORD, tmp_path, AMQP_URL=rabbit.url, PREFIX=rabbit.prefix)

    output = await asyncio.to_thread(said, program)

    assert output.endswith("done\n")  # a busy machine has asyncio say what took long
    assert await ids_in(rabbit) == {"parent-1", "parent-2"}


FORGETTING = """
from broker_worker.client import SyncClient

client = SyncClient.from_environment()
client.publish("report", id="t-1")
assert client.status("t-1") is None
try:
    client.wait("t-1", timeout=0.1)
except TimeoutError:
    print("done")
"""


async def test_a_script_that_forgets_to_close_ends_without_a_word(
    rabbit: Rabbit, database_url: str, tmp_path: Path
) -> None:
    program = script(
        FORGETTING,
        tmp_path,
        AMQP_URL=rabbit.url,
        PREFIX=rabbit.prefix,
        DATABASE_URL=database_url,
        DATABASE_DIRECT_URL=database_url,
    )

    assert await asyncio.to_thread(said, program) == "done\n"


INTERRUPTED = """
from broker_worker.client import SyncClient

client = SyncClient.from_environment()
try:
    print("waiting", flush=True)
    client.wait("t-1")
except KeyboardInterrupt:
    print(client.status("t-1"))
"""


def test_an_interrupt_ends_a_wait_and_the_client_can_still_be_used(database_url: str, tmp_path: Path) -> None:
    program = script(INTERRUPTED, tmp_path, DATABASE_URL=database_url)
    assert program.stdout is not None
    assert program.stdout.readline() == "waiting\n"

    program.send_signal(signal.SIGINT)

    assert said(program) == "None\n"

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import pytest

from broker_worker.local import LocalServerError, PrivatePostgres, PrivateRabbitMQ, Servers, local_servers

if TYPE_CHECKING:
    from tests.support.services import Broker

SECONDS_FOR_STARTS = 400  # several of RabbitMQ, or some of Postgres, perhaps on a busy machine

OWNER = """
import json, sys, time
from dataclasses import asdict
from broker_worker.local import local_servers
with local_servers(fsync=False) as servers:
    print(json.dumps(asdict(servers)), flush=True)
    time.sleep(600)
"""


async def test_a_test_gets_a_virtual_host_that_takes_connections(broker: Broker) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(f"{broker.prefix}.here", exclusive=True)

    assert queue.declaration_result.message_count == 0


async def test_a_test_gets_a_database_that_answers_queries(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        one = await connection.fetchval("SELECT 1")
    finally:
        await connection.close()

    assert one == 1


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_what_one_test_writes_no_other_sees(turn: str, database_url: str, broker: Broker) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE TABLE mine (turn text)")  # fails if it is the same database
    finally:
        await connection.close()
    async with await aio_pika.connect(broker.url) as amqp:
        queue = await (await amqp.channel()).declare_queue("same-name", arguments={"x-expires": 60_000})

    assert queue.declaration_result.consumer_count == 0


@pytest.mark.timeout(SECONDS_FOR_STARTS)
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_rabbitmq_that_ended_comes_back_with_its_queue_on_the_same_port(
    end: str, private_rabbitmq: PrivateRabbitMQ
) -> None:
    async with await aio_pika.connect(private_rabbitmq.amqp_url()) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(aio_pika.Message(b"still here"), routing_key="kept")
    private_rabbitmq.flush()
    port = private_rabbitmq.port

    if end == "kill":
        private_rabbitmq.kill()
        private_rabbitmq.start()
    else:
        private_rabbitmq.restart()

    assert private_rabbitmq.port == port
    async with await aio_pika.connect(private_rabbitmq.amqp_url()) as connection:
        queue = await (await connection.channel()).get_queue("kept")
        message = await queue.get(timeout=30)
    assert message is not None
    assert message.body == b"still here"


@pytest.mark.timeout(SECONDS_FOR_STARTS)
async def test_a_restarted_or_killed_postgres_has_what_was_committed_on_the_same_port(
    private_postgres: PrivatePostgres,
) -> None:
    connection = await asyncpg.connect(private_postgres.url())
    await connection.execute("CREATE TABLE kept AS SELECT 'still here' AS what")

    private_postgres.kill()
    private_postgres.start()
    private_postgres.restart()

    connection.terminate()
    connection = await asyncpg.connect(private_postgres.url())
    assert await connection.fetchval("SELECT what FROM kept") == "still here"
    await connection.close()


@pytest.mark.timeout(SECONDS_FOR_STARTS)
def test_servers_end_when_their_owner_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        servers = Servers(**json.loads(owner.stdout.readline()))
        processes = processes_below(owner.pid)

        owner.kill()
        owner.wait()

        assert len(processes) > 5
        wait_until_gone(processes)
        for url in (servers.amqp_url, servers.database_url, servers.management_url):
            assert not accepts_connections(str(url))


@pytest.mark.timeout(SECONDS_FOR_STARTS)
def test_servers_end_on_ctrl_c() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        processes = processes_below(owner.pid)

        owner.send_signal(signal.SIGINT)
        owner.wait(120)

        wait_until_gone(processes, seconds=0)


def test_a_given_address_is_taken_as_it_is(servers: Servers) -> None:
    given = {
        "BROKER_WORKER_LOCAL_AMQP_URL": servers.amqp_url,
        "BROKER_WORKER_LOCAL_DATABASE_URL": servers.database_url,
    }

    with local_servers(environment=given) as found:
        assert (found.amqp_url, found.database_url) == (servers.amqp_url, servers.database_url)
        assert "as given" in found.how


def test_a_given_address_that_does_not_answer_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    given = {
        "BROKER_WORKER_LOCAL_AMQP_URL": f"amqp://guest:guest@127.0.0.1:{port}/",
        "BROKER_WORKER_LOCAL_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{port}/postgres",
    }

    with pytest.raises(LocalServerError, match="BROKER_WORKER_LOCAL_AMQP_URL") as caught:
        local_servers(environment=given).__enter__()

    assert "\n" not in str(caught.value)


def processes_below(pid: int) -> set[int]:
    """Every descendant, by the kernel's own list of children."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for children in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            new = {int(child) for child in children.read_text().split()}
            found |= new
            waiting.extend(new)
    return found


def wait_until_gone(pids: set[int], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while alive := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() <= deadline, f"still alive: {alive}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def accepts_connections(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as client:
        return client.connect_ex((str(address.hostname), int(str(address.port)))) == 0

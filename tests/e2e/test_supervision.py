"""A broker that refuses, forgets, runs short or loses: what a daemon says of it, and what it does."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import connected
from broker_worker.local import PrivateRabbitMQ
from tests.e2e.conftest import Service, message
from tests.support.daemon import DaemonProcess, until

pytestmark = pytest.mark.timeout(240)

BEATS = 4  # of three seconds, in which a lost consumer is tried again twice or more
ALARM, NO_ALARM = "0.00001", "0.4"  # of the memory that RabbitMQ may use


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbitMQ]:
    """A RabbitMQ for the tests of this file; each leaves it as it was."""
    with PrivateRabbitMQ() as rabbitmq:
        yield rabbitmq


@pytest.fixture
def own_service(node: PrivateRabbitMQ, database_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service on a virtual host of that node."""
    vhost = tmp_path.name
    node.ctl("add_vhost", vhost)
    node.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    with ExitStack() as running:
        yield Service(node.amqp_url(vhost), database_url, "bw", tmp_path, running)
    node.ctl("delete_vhost", vhost)


@contextmanager
def memory_alarm(node: PrivateRabbitMQ) -> Iterator[None]:
    node.ctl("set_vm_memory_high_watermark", ALARM)
    try:
        yield
    finally:
        node.ctl("set_vm_memory_high_watermark", NO_ALARM)


def checks(worker: DaemonProcess) -> dict[str, bool]:
    _, body = worker.get("/readyz")
    return {name: state["ok"] for name, state in json.loads(body)["checks"].items()} if body else {}


def says(worker: DaemonProcess, text: str, **fields: object) -> bool:
    return any(
        line["message"] == text and fields.items() <= line.items()
        for line in worker.lines()
        if "message" in line
    )


def last_word(worker: DaemonProcess, *, queue: str) -> str:
    """What was said last of the consumer of a queue."""
    words = [line["message"] for line in worker.lines() if line.get("queue") == queue]
    return [str(word) for word in words if word in {"consuming", "consumer lost"}][-1]


def consumptions(worker: DaemonProcess) -> int:
    """How often the queue `default` came to be consumed."""
    return sum(line.get("message") == "consuming" and line["queue"] == "default" for line in worker.lines())


def beat(service: Service) -> int:
    (row,) = service.rows("SELECT max(beat) AS beat FROM workers")
    count: int = row["beat"]
    return count


async def purge(url: str, names: list[str]) -> None:
    async with connected(url, "test purge") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        for name in names:
            await channel.queue_purge(name)


def test_during_a_memory_alarm_tasks_run_and_retries_wait_for_its_end(
    own_service: Service, node: PrivateRabbitMQ
) -> None:
    own_service.start().stop()  # declares
    own_service.publish(*(message("fails_once", f"f-{i}") for i in range(20)))
    own_service.publish(*(message("double", f"d-{i}", {"x": i}) for i in range(20)))

    with memory_alarm(node):
        worker = own_service.start()
        own_service.until_states(retrying=20, succeeded=20)
        until("it is said", lambda: says(worker, "publishing blocked by the broker"))
        until("nothing is left in the broker", lambda: own_service.depth() == 0)
        worker.wait_ready()

    own_service.until_states(succeeded=40)
    own_service.until_rest()
    assert says(worker, "publishing goes on")
    assert all(count == 1 + task.startswith("f") for task, count in own_service.runs().items())


def test_a_daemon_that_may_not_consume_any_more_says_so_records_what_runs_and_asks_for_a_fresh_process(
    own_service: Service, node: PrivateRabbitMQ
) -> None:
    own_service.start().stop()  # declares, which may take longer than the next one is patient
    worker = own_service.start(HANDLERS="tests.support.impatient_guard")
    own_service.publish(message("gated", "t-1"))
    until("it runs", lambda: own_service.runs()["t-1"] == 1)

    node.ctl("set_permissions", "-p", own_service.folder.name, "guest", ".*", ".*", "^$")
    node.ctl("close_all_connections", "--vhost", own_service.folder.name, "a test")
    until("it is said", lambda: says(worker, "consumer lost", level="error", code=403))
    until("it is not ready", lambda: checks(worker).get("consumers") is False)
    own_service.gate.touch()

    assert worker.wait() == 1
    assert own_service.states() == {"succeeded": 1}
    assert "though broker and database answer" in worker.tail()


def test_copies_that_the_broker_lost_are_sent_again_once_by_two_daemons(own_service: Service) -> None:
    own_service.settings = {"RETRY_DELAY": "1h", "RETRY_JITTER": "0"}
    daemons = [own_service.start(), own_service.start()]
    own_service.publish(*(message("fails_once", f"t-{i}") for i in range(300)))
    own_service.until_states(retrying=300)
    until("the outbox is empty", lambda: not own_service.rows("SELECT id FROM outbox"))

    asyncio.run(purge(own_service.amqp_url, ["bw.delay.3072000", "bw.delay.4096000"]))
    own_service.rows("UPDATE tasks SET due_at = now() - interval '7 hours'")

    own_service.until_states(succeeded=300)
    own_service.until_rest()
    assert set(own_service.runs().values()) == {2}
    assert {row["reemissions"] for row in own_service.rows("SELECT reemissions FROM tasks")} <= {0, 1}
    for each in daemons:
        each.wait_ready()


def test_a_queue_that_lost_its_leader_is_said_and_the_others_are_consumed(
    own_service: Service, node: PrivateRabbitMQ
) -> None:
    own_service.settings = {"QUEUES": "default:5,other:5"}
    own_service.start().stop()
    vhost = own_service.folder.name
    # as after a kill within half a second of the declaration: the queue is known, and nobody serves it
    node.ctl("eval", f"ra:stop_server(quorum_queues, {{'{vhost}_bw.q.other', node()}}).")
    worker = own_service.start(ready=False, LOG_LEVEL="debug")
    own_service.publish(message("double", "t-1", {"x": 1}))

    own_service.until_states(succeeded=1)
    until("it is said", lambda: says(worker, "consumer lost", queue="other"))
    until("the first try has cost the connection", lambda: says(worker, "connection lost", link="consume"))
    until("the others are consumed again", lambda: last_word(worker, queue="default") == "consuming")
    consumed, begun = consumptions(worker), beat(own_service)
    until("it was tried again", lambda: beat(own_service) >= begun + BEATS)
    assert consumptions(worker) == consumed
    until("it is told", lambda: checks(worker).get("consumers") is False)
    node.ctl("delete_queue", "-p", vhost, "bw.q.other")

    worker.wait_ready()
    own_service.publish(message("double", "t-2", {"x": 1}), queue="other")
    own_service.until_states(succeeded=2)


def test_heartbeats_go_on_while_a_stopping_worker_waits_for_its_tasks(own_service: Service) -> None:
    url = f"{own_service.amqp_url}?heartbeat=3"
    worker = own_service.start(AMQP_URL=url, SHUTDOWN_GRACE="120s")
    own_service.publish(message("gated", "t-1"))
    until("it runs", lambda: own_service.runs()["t-1"] == 1)

    worker.signal(signal.SIGTERM)
    until("it drains", lambda: says(worker, "worker draining"))
    begun = beat(own_service)
    until("three heartbeats were due, and more", lambda: beat(own_service) >= begun + BEATS)
    own_service.gate.touch()

    assert worker.wait() == 0
    assert not says(worker, "connection lost")
    assert (own_service.states(), own_service.depth()) == ({"succeeded": 1}, 0)


def test_a_clean_stop_loses_nothing_in_its_own_words(own_service: Service) -> None:
    worker = own_service.start()

    assert worker.stop() == 0

    assert not says(worker, "consumer lost")
    assert not says(worker, "connection lost")
    assert says(worker, "consumer stopped", queue="default")

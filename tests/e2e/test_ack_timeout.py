"""A task that takes longer than the broker waits for an ack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from broker_worker.local import PrivateRabbitMQ
from tests.e2e.conftest import Service, message
from tests.support.daemon import until

pytestmark = pytest.mark.timeout(240)

ACK_TIMEOUT_MS = 10_000
IMPATIENT = (
    f"application:set_env(rabbit, consumer_timeout, {ACK_TIMEOUT_MS}), "
    # how often a channel looks for deliveries that wait for their ack
    "application:set_env(rabbit, channel_tick_interval, 1000)."
)


@pytest.fixture
def impatient_service(
    private_rabbitmq: PrivateRabbitMQ, database_url: str, tmp_path: Path
) -> Iterator[Service]:
    """A service on a broker that waits ten seconds for an ack, whatever the queue says."""
    private_rabbitmq.ctl("eval", IMPATIENT)
    # from 3.12 on the shorter of policy and argument counts, and ours says hours
    policy = f'{{"consumer-timeout": {ACK_TIMEOUT_MS}}}'
    with ExitStack() as running:
        service = Service(private_rabbitmq.amqp_url(), database_url, "bw", tmp_path, running)
        if not private_rabbitmq.ctl("version").startswith(("3.10", "3.11")):
            private_rabbitmq.ctl("set_policy", "impatient", ".*", policy, "--apply-to", "queues")
        yield service


def has_timeouts(log: Path, count: int) -> bool:
    """Whether the broker has closed a channel so often because an ack was late."""
    return log.read_text().count("delivery acknowledgement on channel") >= count


def test_a_task_longer_than_the_ack_timeout_runs_once_beside_others(impatient_service: Service) -> None:
    worker = impatient_service.start()
    impatient_service.publish(message("gated", "long"))
    until("the long task runs", lambda: impatient_service.runs()["long"] == 1)

    for lost in range(1, 4):
        impatient_service.publish(*(message("double", f"short-{lost}-{i}", {"x": i}) for i in range(10)))
        until("the broker lost patience", partial(has_timeouts, worker.log, lost), seconds=60)
        worker.wait_ready()
    impatient_service.gate.touch()

    impatient_service.until_states(succeeded=31)
    impatient_service.until_rest()
    assert set(impatient_service.runs().values()) == {1}
    assert impatient_service.task("long")["attempt"] == 1

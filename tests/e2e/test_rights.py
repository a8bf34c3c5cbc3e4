"""A worker with the least rights: it may consume and publish, and change nothing of the broker."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest

from tests.e2e.conftest import Service, message
from tests.support.services import Broker, call_management

pytestmark = pytest.mark.timeout(240)


def test_a_worker_without_configure_rights_does_its_whole_job(service: Service, broker: Broker) -> None:
    if broker.management_url is None:
        pytest.fail("this test makes a broker user: it needs the HTTP API of RabbitMQ", pytrace=False)
    owner = service.start()  # with all rights: declares the topology
    assert owner.stop() == 0
    prefix = broker.prefix
    user = f"worker-{prefix}"
    put(broker, f"/api/users/{user}", {"password": "pw", "tags": ""})
    put(
        broker,
        f"/api/permissions/{broker.vhost}/{user}",
        {
            "configure": "^$",
            "write": rf"^{prefix}\.(tasks|dlx|delay\..*)$",
            "read": rf"^{prefix}\.(q\..*|dead\..*|unroutable)$",
        },
    )
    url = urlsplit(service.amqp_url)
    admin, service.amqp_url = (
        service.amqp_url,
        urlunsplit(url._replace(netloc=f"{user}:pw@{url.hostname}:{url.port}")),
    )

    worker = service.start(DECLARE="false")
    service.amqp_url = admin
    service.publish(
        message("double", "ok", {"x": 1}), message("fails_once", "retried"), message("gives_up", "dead")
    )

    service.until_states(succeeded=2, dead=1)
    service.until_rest()
    assert service.task("retried")["attempt"] == 2
    assert worker.stop() == 0


def put(broker: Broker, path: str, body: dict[str, str]) -> None:
    assert broker.management_url is not None
    call_management(broker.management_url, "PUT", path, json.dumps(body).encode())


def test_a_queue_with_other_arguments_ends_the_daemon_with_one_line_that_names_them(service: Service) -> None:
    async def declare_otherwise() -> None:
        connection = await aio_pika.connect(service.amqp_url)
        async with connection:
            channel = await connection.channel()
            await channel.declare_queue(
                f"{service.prefix}.q.default",
                durable=True,
                arguments={"x-queue-type": "quorum", "x-delivery-limit": 5},
            )

    asyncio.run(declare_otherwise())

    worker = service.start(ready=False)

    assert worker.wait() == 1
    assert "x-dead-letter-exchange" in worker.tail() or "x-delivery-limit" in worker.tail()
    assert f"{service.prefix}.q.default" in worker.tail()
    assert "Traceback" not in worker.tail()

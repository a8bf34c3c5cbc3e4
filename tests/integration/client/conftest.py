"""A broker with one queue, and a way to see what is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pamqp import commands
from pydantic import BaseModel

from broker_worker import Context, Registry
from broker_worker.amqp import declaration
from broker_worker.amqp.connection import connected
from broker_worker.amqp.topology import Topology
from broker_worker.client import Client
from tests.contract.conftest import pgbouncer
from tests.e2e.conftest import service
from tests.support.management import Control
from tests.support.services import Broker

__all__ = ["pgbouncer", "service"]

registry = Registry()


class Mail(BaseModel):
    to: str
    copies: int = 1


@registry.task("mail.send")
async def send_mail(mail: Mail, context: Context) -> None: ...


@registry.task("mail.sweep")
async def sweep(context: Context) -> None: ...


@registry.task("mail.count")
async def count_mails(folder: str, least: int = 0) -> int:
    return len(folder) + least


@registry.task("mail.print")
class PrintMail:
    async def run(self, mail: Mail) -> None: ...


async def unregistered(mail: Mail) -> None: ...


@dataclass(frozen=True)
class Received:
    """One message as the broker has it."""

    name: str
    headers: dict[str, Any]
    payload: Any
    correlation_id: str | None


@dataclass(frozen=True)
class Rabbit:
    """The part of a broker that a test publishes into."""

    url: str
    prefix: str

    def client(self, **options: Any) -> Client:  # noqa: ANN401 - those of Client
        return Client(amqp_url=self.url, prefix=self.prefix, registry=registry, **options)

    async def declare(self, *queues: str) -> None:
        topology = Topology(self.prefix, queues, rungs=(timedelta(seconds=1), timedelta(seconds=2)))
        async with connected(self.url, "test") as connection:
            await declaration.declare(connection, topology)

    async def delete(self, queue: str) -> None:
        """Delete a queue, and what takes in messages that lead nowhere."""
        async with connected(self.url, "test") as connection:
            channel = await connection.wire.channel()
            await channel.queue_delete(f"{self.prefix}.q.{queue}")
            await channel.exchange_delete(f"{self.prefix}.unroutable")

    async def received(self, queue: str = "default") -> list[Received]:
        """Take everything out of a queue."""
        found: list[Received] = []
        async with connected(self.url, "test") as connection:
            channel = await connection.wire.channel()
            while True:
                got = await channel.basic_get(f"{self.prefix}.q.{queue}", no_ack=True)
                if isinstance(got.delivery, commands.Basic.GetEmpty):
                    return found
                properties = got.header.properties
                headers = {
                    key: value
                    for key, value in (properties.headers or {}).items()
                    if not key.startswith("x-")
                }
                found.append(
                    Received(
                        str(properties.message_type),
                        headers,
                        json.loads(got.body),
                        properties.correlation_id,
                    )
                )


@pytest.fixture
async def rabbit(broker: Broker) -> Rabbit:
    rabbit = Rabbit(broker.url, broker.prefix)
    await rabbit.declare("default")
    return rabbit


@pytest.fixture
def control(broker: Broker) -> Control:
    if broker.management_url is None:
        pytest.fail("this test needs RabbitMQ's HTTP API, which the given broker does not have")
    return Control(broker.management_url, broker.vhost)

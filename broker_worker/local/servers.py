"""Where a RabbitMQ and a Postgres come from on this machine: for each the first place that works."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_worker.local.containers import postgres_in_docker, rabbitmq_in_docker
from broker_worker.local.debian import install_rabbitmq
from broker_worker.local.errors import LocalServerError
from broker_worker.local.network import answers_amqp, answers_sql
from broker_worker.local.postgres import PrivatePostgres
from broker_worker.local.rabbitmq import PrivateRabbitMQ, find_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

AMQP_URL = "BROKER_WORKER_LOCAL_AMQP_URL"
MANAGEMENT_URL = "BROKER_WORKER_LOCAL_MANAGEMENT_URL"  # optional, beside AMQP_URL: the root of its HTTP API
DATABASE_URL = "BROKER_WORKER_LOCAL_DATABASE_URL"


@dataclass(frozen=True, slots=True)
class RabbitMQ:
    """A RabbitMQ that answers."""

    amqp_url: str
    management_url: str | None
    how: str


@dataclass(frozen=True, slots=True)
class Postgres:
    """A Postgres that answers."""

    url: str
    how: str


@dataclass(frozen=True, slots=True)
class Servers:
    """Both, for as long as the context lasts that gave them."""

    amqp_url: str
    database_url: str
    how: str  # one line for people
    management_url: str | None = None  # RabbitMQ's HTTP API, credentials included, if there is one


@contextmanager
def local_servers(*, fsync: bool = True, environment: Mapping[str, str] = os.environ) -> Iterator[Servers]:
    """Give a RabbitMQ and a Postgres on this machine and take them away afterwards.

    For each of the two the first place that works: the address in the environment; Docker; a private server
    from the programs of this machine, on free ports; the same after `apt-get install rabbitmq-server` (root
    on Debian or Ubuntu). Both start side by side. `fsync=False`, for tests, makes Postgres fast, forgetful.

    Raises:
        LocalServerError: one of them is to be had nowhere, or a given address does not answer.
    """
    with ExitStack() as running, ThreadPoolExecutor(2) as threads:
        coming_rabbitmq = threads.submit(find_a_rabbitmq, running, environment)
        coming_postgres = threads.submit(find_a_postgres, running, environment, fsync=fsync)
        rabbitmq, postgres = coming_rabbitmq.result(), coming_postgres.result()
        yield Servers(
            amqp_url=rabbitmq.amqp_url,
            database_url=postgres.url,
            how=f"RabbitMQ {rabbitmq.how}, Postgres {postgres.how}",
            management_url=rabbitmq.management_url,
        )


def find_a_rabbitmq(running: ExitStack, environment: Mapping[str, str]) -> RabbitMQ:
    """Open the first RabbitMQ that works."""
    if url := environment.get(AMQP_URL):
        if not answers_amqp(url):
            raise LocalServerError(f"no RabbitMQ lets us in at the address in {AMQP_URL}")
        return RabbitMQ(url, environment.get(MANAGEMENT_URL), f"as given in {AMQP_URL}")
    try:
        amqp_url, management_url = running.enter_context(rabbitmq_in_docker())
        return RabbitMQ(amqp_url, management_url, "in Docker")
    except LocalServerError as no_docker:
        try:
            return private_rabbitmq(running)
        except LocalServerError as error:
            raise LocalServerError(
                f"no RabbitMQ on this machine: {no_docker}; {error}; or set {AMQP_URL}"
            ) from error


def private_rabbitmq(running: ExitStack) -> RabbitMQ:
    """Open a node of our own, its programs installed first where they are missing and may be."""
    how = "as a private node"
    try:
        find_rabbitmq()
    except LocalServerError as missing:
        try:
            install_rabbitmq()
        except LocalServerError as error:
            raise LocalServerError(f"{missing}, and {error}") from error
        how = "freshly installed, as a private node"
    node = running.enter_context(PrivateRabbitMQ())
    return RabbitMQ(node.amqp_url(), node.management_url, f"{how} on port {node.port}")


def find_a_postgres(running: ExitStack, environment: Mapping[str, str], *, fsync: bool) -> Postgres:
    """Open the first Postgres that works."""
    if url := environment.get(DATABASE_URL):
        if not answers_sql(url):
            raise LocalServerError(f"no Postgres lets us in at the address in {DATABASE_URL}")
        return Postgres(url, f"as given in {DATABASE_URL}")
    try:
        return Postgres(running.enter_context(postgres_in_docker(fsync=fsync)), "in Docker")
    except LocalServerError as no_docker:
        try:
            server = running.enter_context(PrivatePostgres(fsync=fsync))
        except LocalServerError as error:
            raise LocalServerError(
                f"no Postgres on this machine: {no_docker}; {error}; or set {DATABASE_URL}"
            ) from error
        return Postgres(server.url(), f"as a private server on port {server.port}")

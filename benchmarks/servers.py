"""The private RabbitMQ and Postgres (fsync on, defaults otherwise), and a fresh place in both for a run."""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.request
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from broker_worker.local import LocalServerError, local_servers

# For clients that can't name a type, as Dramatiq. RabbitMQ 3.10 has another name for it.
QUORUM_BY_DEFAULT = {"default_queue_type": "quorum", "defaultqueuetype": "quorum"}


@dataclass(frozen=True, slots=True)
class Place:
    """A virtual host and a database that nobody else uses."""

    amqp_url: str
    database_url: str


@dataclass(frozen=True, slots=True)
class BenchServers:
    """Both servers, for as long as the benchmarks run."""

    amqp_url: str
    management_url: str  # RabbitMQ's HTTP API, credentials included
    database_url: str  # of the superuser
    how: str  # one line for people

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Give an empty virtual host and an empty database, and take them away afterwards.

        What the last user of the database left to be written is written first, so that the next does not
        pay for it.
        """
        name = f"bench_{secrets.token_hex(6)}"
        await asyncio.to_thread(self.call_management, "PUT", f"/api/vhosts/{name}", QUORUM_BY_DEFAULT)
        await self.execute(f"CREATE DATABASE {name}", "CHECKPOINT")
        try:
            yield Place(with_path(self.amqp_url, name), with_path(self.database_url, name))
        finally:
            await self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await asyncio.to_thread(self.call_management, "DELETE", f"/api/vhosts/{name}")

    async def execute(self, *statements: str) -> None:
        """Run statements as the superuser, each outside any transaction."""
        connection = await asyncpg.connect(self.database_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def versions(self) -> dict[str, str]:
        """Return the versions of both: `rabbitmq`, `erlang`, `postgres`."""
        overview = json.loads(await asyncio.to_thread(self.call_management, "GET", "/api/overview"))
        connection = await asyncpg.connect(self.database_url)
        try:
            postgres: str = await connection.fetchval("SHOW server_version")
        finally:
            await connection.close()
        return {
            "rabbitmq": overview["rabbitmq_version"],
            "erlang": overview["erlang_version"],
            "postgres": postgres,
        }

    def call_management(self, method: str, path: str, body: Mapping[str, str] | None = None) -> bytes:
        """Call RabbitMQ's HTTP API and return the body of its answer."""
        address = urlsplit(self.management_url)
        credentials = b64encode(f"{address.username}:{address.password}".encode()).decode()
        request = urllib.request.Request(
            f"{address.scheme}://{address.hostname}:{address.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answered: bytes = answer.read()
            return answered


def with_path(url: str, name: str) -> str:
    """Return the address of another virtual host or database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextmanager
def bench_servers() -> Iterator[BenchServers]:
    """Start both, and end them afterwards.

    Raises:
        LocalServerError: one of them is to be had nowhere, or RabbitMQ has no HTTP API.
    """
    with local_servers(fsync=True) as servers:
        if servers.management_url is None:
            raise LocalServerError("the benchmarks need RabbitMQ's HTTP API for a virtual host per run")
        yield BenchServers(
            amqp_url=servers.amqp_url,
            management_url=servers.management_url,
            database_url=servers.database_url,
            how=servers.how,
        )

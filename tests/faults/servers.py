"""A RabbitMQ and a Postgres of our own, and what can be done to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import quote

import asyncpg

from broker_worker.local import LocalServerError, PrivatePostgres, PrivateRabbitMQ
from broker_worker.store.schema import grants_sql
from tests.faults.history import watch
from tests.faults.processes import children_of
from tests.support.services import call_management, prepare_template, with_database

DATABASE, ROLE, VHOST = "app", "app", "chaos"
NOT_NOW = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
FAILED = (*NOT_NOW, LocalServerError, subprocess.SubprocessError, HTTPException, ValueError)
TRIES = 5  # a busy machine
ALARM_ON, ALARM_OFF = "0.000001", "0.6"


@dataclass(slots=True)
class Servers:
    """Both, running."""

    rabbitmq: PrivateRabbitMQ
    postgres: PrivatePostgres
    password: str  # of the daemons' role

    @property
    def owner_url(self) -> str:
        """The database, as one who may do anything."""
        return with_database(self.postgres.url(), DATABASE)

    def database_url(self, port: int) -> str:
        """The database as the daemons see it, by way of a gate."""
        return f"postgresql://{ROLE}:{self.password}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"

    def amqp_url(self, port: int | None = None) -> str:
        """The broker, by way of a gate or directly."""
        url = self.rabbitmq.amqp_url(VHOST)
        return url if port is None else url.replace(f":{self.rabbitmq.port}/", f":{port}/")

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the owner, past all gates."""
        connection = await asyncpg.connect(self.owner_url, timeout=10, command_timeout=60)
        try:
            yield connection
        finally:
            with contextlib.suppress(*NOT_NOW):
                await connection.close(timeout=5)

    async def lay_out(self) -> None:
        """Make the virtual host, the schema, the witness and the role."""
        await asyncio.to_thread(self.call, "PUT", f"/api/vhosts/{VHOST}")
        admin = await asyncpg.connect(self.postgres.url())
        try:
            await admin.execute(f"CREATE DATABASE {DATABASE}")
            await admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{self.password}'")
            await admin.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        finally:
            await admin.close()
        await asyncio.to_thread(self.postgres.restart)
        await asyncio.to_thread(prepare_template, self.owner_url)
        async with self.database() as connection:
            await watch(connection, ROLE)
            await connection.execute(grants_sql("broker_worker", ROLE))

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Call RabbitMQ's HTTP API."""
        return call_management(self.rabbitmq.management_url, method, path, body)

    # --- RabbitMQ ----------------------------------------------------------------------

    async def kill_rabbitmq(self, pause: float) -> None:
        """Kill it, and start it again after a pause."""
        await asyncio.to_thread(self.rabbitmq.kill)
        await asyncio.sleep(pause)
        await in_the_end(lambda: asyncio.to_thread(self.rabbitmq.start))

    async def restart_rabbitmq(self, pause: float) -> None:
        """Stop and start it within its virtual machine, as an operator does."""
        try:
            await asyncio.to_thread(self.rabbitmq.ctl, "stop_app")
            await asyncio.sleep(pause)
        finally:
            await in_the_end(lambda: asyncio.to_thread(self.rabbitmq.ctl, "start_app"))

    async def stop_rabbitmq(self, seconds: float) -> None:
        """Let it stand still, all of it."""
        await stand_still(self.rabbitmq_pids(), seconds)

    def rabbitmq_pids(self) -> list[int]:
        """The processes of the node."""
        process = self.rabbitmq._process
        return [] if process is None else children_of(process.pid, deep=True)

    async def close_connections(self, *, most: int | None) -> int:
        """Close clients' connections as an operator does; return how many."""
        found = json.loads(await asyncio.to_thread(self.call, "GET", f"/api/vhosts/{VHOST}/connections"))
        names = [each["name"] for each in found][:most]
        for name in names:
            with contextlib.suppress(OSError):  # gone by itself
                await asyncio.to_thread(self.call, "DELETE", f"/api/connections/{quote(name, safe='')}")
        return len(names)

    async def close_all_connections(self) -> None:
        await asyncio.to_thread(self.rabbitmq.ctl, "close_all_connections", "--vhost", VHOST, "chaos")

    async def alarm(self, seconds: float) -> None:
        """Have it believe that it has too little memory: publishers are blocked."""
        await asyncio.to_thread(self.rabbitmq.ctl, "set_vm_memory_high_watermark", ALARM_ON)
        try:
            await asyncio.sleep(seconds)
        finally:
            await self.no_alarm()

    async def no_alarm(self) -> None:
        """Have it know again how much memory it has."""
        await in_the_end(
            lambda: asyncio.to_thread(self.rabbitmq.ctl, "set_vm_memory_high_watermark", ALARM_OFF)
        )

    async def queues(self) -> dict[str, tuple[int, int, int]]:
        """Ready, unacked and consumers of each queue."""
        found = json.loads(await asyncio.to_thread(self.call, "GET", f"/api/queues/{VHOST}"))
        return {
            each["name"]: (
                each.get("messages_ready", 0),
                each.get("messages_unacknowledged", 0),
                each.get("consumers", 0),
            )
            for each in found
        }

    # --- Postgres ----------------------------------------------------------------------

    async def terminate(self, share: float) -> int:
        """Terminate a share of the daemons' sessions; return how many."""
        async with self.database() as connection:
            return int(
                await connection.fetchval(
                    """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE usename = $1 AND random() < $2""",
                    ROLE,
                    share,
                )
            )

    async def kill_postgres(self, pause: float) -> None:
        """End it at once, as an immediate shutdown does, and start it again after a pause."""
        process = self.postgres._process
        assert process is not None
        for pid in children_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        await asyncio.to_thread(self.postgres.stop)
        await asyncio.sleep(pause)
        await in_the_end(lambda: asyncio.to_thread(self.postgres.start))

    async def read_only(self, seconds: float) -> None:
        """Have it refuse writes, as the other side of a failover does."""
        await self._set_read_only("on")
        try:
            await asyncio.sleep(seconds)
        finally:
            await self.writable()

    async def writable(self) -> None:
        """Have it take writes again."""
        await in_the_end(lambda: self._set_read_only("off"))

    async def _set_read_only(self, value: str) -> None:
        async with self.database() as connection:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            await connection.execute("SELECT pg_reload_conf()")


async def in_the_end(act: Callable[[], Awaitable[object]]) -> None:
    """Do what a run can't go on without, trying again."""
    for _ in range(TRIES - 1):
        try:
            await act()
        except FAILED:
            await asyncio.sleep(1.0)
        else:
            return
    await act()


async def stand_still(pids: list[int], seconds: float) -> None:
    """Stop processes for a time."""
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def running_servers(*, fsync: bool, password: str) -> AsyncIterator[Servers]:
    """Start both side by side, laid out; they end with us, whatever becomes of us."""
    with ExitStack() as running, ThreadPoolExecutor(2) as threads:
        coming = threads.submit(lambda: running.enter_context(PrivateRabbitMQ()))
        postgres = await asyncio.to_thread(lambda: running.enter_context(PrivatePostgres(fsync=fsync)))
        servers = Servers(await asyncio.wrap_future(coming), postgres, password)
        await servers.lay_out()
        yield servers

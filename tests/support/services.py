"""The real servers of a test run: one RabbitMQ and one Postgres for all its processes, started if needed.

The process that pytest was started as owns the run. Whoever needs servers first starts
`python -m broker_worker.local`, which ends with the owner, whatever happens to it, and leaves the addresses
in the file of the run.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import urllib.request
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from broker_worker.local import LocalServerError, Servers
from broker_worker.local.network import run_apart
from broker_worker.store.database import Database
from broker_worker.store.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS_TO_END = 20.0


def prepare_template(url: str) -> None:
    """Bring the database that every test gets a copy of to the newest schema; once in a run."""

    async def bring_up_to_date() -> None:
        database = Database.open(lambda: url, schema="broker_worker", pool_size=1)
        try:
            await migrate(database)
        finally:
            await database.close()

    run_apart(bring_up_to_date)


@dataclass(frozen=True, slots=True)
class RunningServers:
    """What the processes of a run tell each other about its servers."""

    servers: Servers
    template: str  # the name of the database that is copied for each test
    pid: int  # of the process that holds the servers


@dataclass(frozen=True, slots=True)
class Broker:
    """The part of a RabbitMQ that belongs to one test."""

    url: str
    prefix: str  # unique: the test may be sharing its virtual host with others
    management_url: str | None
    vhost: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest, seen from any of its processes."""

    owner: int
    file: Path

    @classmethod
    def begin(cls) -> Run:
        """Describe the run that this process owns; nothing is started or written yet."""
        file = Path(tempfile.gettempdir()) / f"broker-worker-tests-{os.getpid()}-{secrets.token_hex(4)}.json"
        return cls(os.getpid(), file)

    def running(self) -> RunningServers:
        """Return the servers of this run, started by the first who asks.

        Raises:
            LocalServerError: there are none to be had; the same line for everyone who asks.
        """
        self.file.touch(mode=0o600)  # it will hold passwords
        with self.file.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            if not text:
                text = self._start()
                file.write(text)
        return self._understood(text)

    def end(self) -> None:
        """End the servers, if there are any, and return when they are gone."""
        if not self.file.exists():
            return
        try:
            running = self._understood(self.file.read_text())
            drop_database(running.servers, running.template)
            end_process(running.pid)
        except (LocalServerError, ValueError, OSError):
            return  # they never came up, or are gone already
        finally:
            self.file.unlink()

    def _start(self) -> str:
        holder = subprocess.Popen(
            [sys.executable, "-m", "broker_worker.local", "--no-fsync", f"--while={self.owner}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # ours may be a pipe that somebody reads to its end
            start_new_session=True,  # Ctrl-C is for the owner, who ends the servers in order
            text=True,
        )
        assert holder.stdout is not None
        with holder.stdout:
            line = json.loads(
                holder.stdout.readline() or '{"error": "broker_worker.local ended without a word"}'
            )
        if "error" in line:
            holder.wait()
            return json.dumps(line)
        holder.returncode = 0  # it outlives this process if that is a worker of xdist: not ours to wait for
        pid = line.pop("pid")
        template = create_database(Servers(**line), prefix="template")
        prepare_template(with_database(line["database_url"], template))
        return json.dumps({"servers": line, "template": template, "pid": pid})

    def _understood(self, text: str) -> RunningServers:
        line = json.loads(text)
        if "error" in line:
            raise LocalServerError(line["error"])
        return RunningServers(Servers(**line["servers"]), line["template"], line["pid"])


@contextmanager
def fresh_database(running: RunningServers) -> Iterator[str]:
    """Yield the address of a copy of the template, which is dropped afterwards."""
    name = create_database(running.servers, prefix="test", template=running.template)
    try:
        yield with_database(running.servers.database_url, name)
    finally:
        drop_database(running.servers, name)


@contextmanager
def fresh_broker(servers: Servers) -> Iterator[Broker]:
    """Yield a virtual host of its own, deleted afterwards; without an HTTP API only a prefix of its own."""
    name = f"t{secrets.token_hex(6)}"
    if servers.management_url is None:
        yield Broker(servers.amqp_url, name, None, urlsplit(servers.amqp_url).path.removeprefix("/"))
        return
    call_management(servers.management_url, "PUT", f"/api/vhosts/{name}")
    try:
        url = urlunsplit(urlsplit(servers.amqp_url)._replace(path=f"/{name}"))
        yield Broker(url, name, servers.management_url, name)
    finally:
        call_management(servers.management_url, "DELETE", f"/api/vhosts/{name}")


def call_management(url: str, method: str, path: str, body: bytes | None = None) -> bytes:
    """Call RabbitMQ's HTTP API and return the body of its answer."""
    address = urlsplit(url)
    credentials = b64encode(f"{address.username}:{address.password}".encode()).decode()
    request = urllib.request.Request(
        f"{address.scheme}://{address.hostname}:{address.port}{path}",
        method=method,
        data=body,
        headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answered: bytes = answer.read()
        return answered


def create_database(servers: Servers, *, prefix: str, template: str = "template1") -> str:
    """Create a database under a new name and return the name."""
    name = f"{prefix}_{secrets.token_hex(6)}"
    execute(servers.database_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    return name


def drop_database(servers: Servers, name: str) -> None:
    """Drop a database, whoever is still connected to it."""
    execute(servers.database_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def execute(url: str, statement: str) -> None:
    """Run one statement outside any transaction."""

    async def connect_and_execute() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    run_apart(connect_and_execute)


def with_database(url: str, name: str) -> str:
    """Return the address of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def end_process(pid: int) -> None:
    """Ask a process to end and return when it has; it need not be a child of ours."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(ended):
        os.kill(pid, signal.SIGTERM)
        select.select([ended], [], [], SECONDS_TO_END)


def as_workerinput(run: Run) -> dict[str, str]:
    """Describe a run for a worker of xdist."""
    return {name: str(value) for name, value in asdict(run).items()}


def from_workerinput(values: dict[str, str]) -> Run:
    """Understand what `as_workerinput` said."""
    return Run(owner=int(values["owner"]), file=Path(values["file"]))

"""Free ports, and the question whether a server answers on one."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import aiormq
import asyncpg
from aiormq.exceptions import AMQPError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
SECONDS_PER_TRY = 5.0
SECONDS_BETWEEN_TRIES = 0.05
CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
NOT_YET = (AMQPError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing uses at the moment.

    They lie below the range out of which the kernel serves clients. From that range another program may take
    the port while our server restarts, and a client that tries a closed port of it can end up connected to
    itself.
    """
    first_of_clients = int(CLIENT_PORTS.read_text().split()[0])
    candidates = list(range(10_000, first_of_clients))
    random.shuffle(candidates)
    ports: list[int] = []
    for port in candidates or [0] * count:
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            ports.append(probe.getsockname()[1])
        if len(ports) == count:
            break
    return ports


def answers_amqp(url: str) -> bool:
    """Whether a RabbitMQ at `url` lets us in, its virtual host included."""
    return listens(url) and run_apart(lambda: _answers(lambda: _greet_rabbitmq(url)))


def answers_sql(url: str) -> bool:
    """Whether a Postgres at `url` lets us in."""
    return listens(url) and run_apart(lambda: _answers(lambda: _greet_postgres(url)))


def listens(url: str) -> bool:
    """Whether anything takes TCP connections there: a cheap and quiet question (aiormq logs every no).

    True where the address names no port: only the client library knows what it means then.
    """
    address = urlsplit(url)
    if address.hostname is None or address.port is None:
        return True
    try:
        with socket.create_connection((address.hostname, address.port), SECONDS_PER_TRY):
            return True
    except OSError:
        return False


def wait_for_answer(answers: Callable[[], bool], is_running: Callable[[], bool], *, seconds: float) -> bool:
    """Ask until there is an answer; give up when the server has ended or the time is over."""
    deadline = time.monotonic() + seconds
    while is_running() and time.monotonic() < deadline:
        if answers():
            return True
        time.sleep(SECONDS_BETWEEN_TRIES)
    return False


def run_apart(make: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a coroutine to its end in a thread: the caller may itself be inside a running loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(make())).result()


async def _answers(greet: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(SECONDS_PER_TRY):
            await greet()
    except NOT_YET:
        return False
    return True


async def _greet_rabbitmq(url: str) -> None:
    connection = await aiormq.connect(url)
    await connection.close()


async def _greet_postgres(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.close()

"""Reads what became of everything: the daemon's tables and metrics, the broker's queues, the files."""

from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import asyncpg
from PIL import Image

from examples.demo.accounting import Effects, Facts, Identity, Letter, TaskRow
from examples.demo.sinks import Mailbox, Receiver

SALES = """
CREATE SCHEMA demo;
CREATE TABLE demo.sales (
  task_id text PRIMARY KEY,
  order_number text NOT NULL,
  region text NOT NULL,
  sold_on date NOT NULL,
  cents integer NOT NULL
)
"""
REPORT_TOTAL = re.compile(r"<tfoot><tr><td>(\d+) orders<td><td>(\d+)\.(\d\d)")
DUPLICATES = re.compile(r"^broker_worker_duplicates_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SlowTask:
    """A task, and how long it was from first sight to its end."""

    identity: Identity
    state: str
    attempts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DeadTask:
    """A dead letter as people see it."""

    identity: Identity
    reason: str
    attempts: int
    error: str


class Books:
    """Looks into the tables of the daemon and of the demo; writes nothing."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def states(self) -> dict[tuple[str, str], int]:
        """How many tasks of each name are in each state."""
        rows = await self._connection.fetch(
            "SELECT name, state, count(*) AS count FROM broker_worker.tasks GROUP BY name, state"
        )
        return {(row["name"], row["state"]): row["count"] for row in rows}

    async def facts(self, *, duplicates: int) -> Facts:
        """Everything that the accounting needs, as of one moment."""
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            tasks = await self._connection.fetch(
                "SELECT queue, name, message_id, state, reason FROM broker_worker.tasks"
            )
            letters = await self._connection.fetch(
                "SELECT queue, name, message_id, reason, task_key FROM broker_worker.dead_letters"
                " WHERE resolved_at IS NULL"
            )
        return Facts(
            rows=[TaskRow(_identity(row), row["state"], row["reason"]) for row in tasks],
            letters=[Letter(_identity(row), row["reason"], row["task_key"] is not None) for row in letters],
            duplicates=duplicates,
        )

    async def owed(self) -> int:
        """How many messages the daemon still has to send."""
        return int(await self._connection.fetchval("SELECT count(*) FROM broker_worker.outbox"))

    async def slowest(self, limit: int) -> list[SlowTask]:
        """The tasks that took longest, waiting included."""
        rows = await self._connection.fetch(
            "SELECT queue, name, message_id, state, attempt,"
            " extract(epoch FROM finished_at - created_at)::float AS seconds"
            " FROM broker_worker.tasks ORDER BY seconds DESC NULLS LAST, message_id LIMIT $1",
            limit,
        )
        return [SlowTask(_identity(row), row["state"], row["attempt"], row["seconds"] or 0.0) for row in rows]

    async def dead(self) -> list[DeadTask]:
        """Every open dead letter."""
        rows = await self._connection.fetch(
            "SELECT queue, name, message_id, reason, attempt, error_type, error_message"
            " FROM broker_worker.dead_letters WHERE resolved_at IS NULL ORDER BY reason, name, message_id"
        )
        return [
            DeadTask(
                _identity(row), row["reason"], row["attempt"], f"{row['error_type']}: {row['error_message']}"
            )
            for row in rows
        ]

    async def sales(self) -> dict[str, tuple[str, int]]:
        """The rows that were imported: region and cents by task id."""
        rows = await self._connection.fetch("SELECT task_id, region, cents FROM demo.sales")
        return {row["task_id"]: (row["region"], row["cents"]) for row in rows}


async def count_duplicates(address: str) -> int:
    """Ask the daemon's metrics how many deliveries were duplicates."""
    text = await asyncio.to_thread(_get, f"http://{address}/metrics")
    return int(sum(float(value) for value in DUPLICATES.findall(text)))


async def is_ready(address: str) -> bool:
    """Ask the daemon's probe."""
    try:
        await asyncio.to_thread(_get, f"http://{address}/readyz")
    except (urllib.error.URLError, OSError):
        return False
    return True


async def left_in_queues(amqp_url: str, queues: list[str]) -> dict[str, int]:
    """What still lies in the broker, by queue; a queue that is not there is empty."""
    left: dict[str, int] = {}
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        for name in queues:
            try:
                async with connection.channel() as channel:
                    queue = await channel.declare_queue(name, passive=True)
                    left[name] = queue.declaration_result.message_count or 0
            except aio_pika.exceptions.ChannelNotFoundEntity:
                continue
    return {name: count for name, count in left.items() if count}


def effects(
    folder: Path, sales: Mapping[str, tuple[str, int]], mailbox: Mailbox, receiver: Receiver
) -> Effects:
    """What the work left behind."""
    return Effects(
        width_by_thumbnail={path.stem: _width(path) for path in (folder / "thumbnails").iterdir()},
        sales=sales,
        reports={path.stem: _total(path) for path in (folder / "reports").iterdir()},
        mails=Counter(mailbox.count_by_id),
        webhooks=Counter(receiver.count_by_id),
    )


def _identity(row: asyncpg.Record) -> Identity:
    return Identity(row["queue"], row["name"], row["message_id"])


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=2) as response:
        return str(response.read().decode())


def _width(path: Path) -> int:
    with Image.open(path) as picture:
        picture.load()
        return picture.width


def _total(path: Path) -> tuple[int, int]:
    found = REPORT_TOTAL.search(path.read_text())
    return (int(found[1]), int(found[2]) * 100 + int(found[3])) if found else (0, 0)

"""One service for a test: its part of the broker, its database, and as many daemons as it wants."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import aio_pika
import asyncpg
import pytest

from tests.support.daemon import ROOT, DaemonProcess, daemon, until
from tests.support.services import Broker


@dataclass
class Service:
    """The world of one e2e test."""

    amqp_url: str
    database_url: str
    prefix: str
    folder: Path
    running: ExitStack
    settings: dict[str, str] = field(default_factory=dict)
    published: int = 0

    @property
    def runs_file(self) -> Path:
        return self.folder / "runs"

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def environment(self, **settings: str) -> dict[str, str]:
        ours = {
            "AMQP_URL": self.amqp_url,
            "DATABASE_URL": self.database_url,
            "ALLOW_INSECURE": "true",  # Docker's servers may have another address than this machine's
            "PREFIX": self.prefix,
            "HANDLERS": "tests.support.handlers",
            "RETRY_DELAY": "1s",
            "UNKNOWN_TASK_GRACE": "0s",
            "AUTO_MIGRATE": "true",
            **self.settings,
            **settings,
        }
        return {
            **{f"BROKER_WORKER_{name}": value for name, value in ours.items()},
            "TEST_RUNS": str(self.runs_file),
            "TEST_GATE": str(self.gate),
            "TEST_DATABASE": self.database_url,
        }

    def start(self, *, ready: bool = True, **settings: str) -> DaemonProcess:
        log = self.folder / f"daemon-{uuid4().hex[:6]}.log"
        return self.running.enter_context(daemon(self.environment(**settings), log, ready=ready))

    def command(self, *arguments: str) -> list[dict[str, object]]:
        """Run `broker-worker` as an operator does; its JSON, a document a line or one list."""
        base = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
        done = subprocess.run(
            [sys.executable, "-m", "broker_worker", *arguments],
            cwd=ROOT,
            env={**base, **self.environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def publish(self, *messages: aio_pika.Message, queue: str = "default") -> None:
        """Publish with confirms, as any program would."""
        asyncio.run(self._publish(messages, queue))

    async def _publish(self, messages: tuple[aio_pika.Message, ...], queue: str) -> None:
        connection = await aio_pika.connect(self.amqp_url)
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(f"{self.prefix}.tasks", ensure=False)
            for start in range(0, len(messages), 100):
                await asyncio.gather(
                    *(exchange.publish(each, queue) for each in messages[start : start + 100])
                )

    def rows(self, query: str) -> list[asyncpg.Record]:
        return asyncio.run(self._rows(query))

    async def _rows(self, query: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute("SET search_path = broker_worker")
            rows: list[asyncpg.Record] = await connection.fetch(query)
            return rows
        finally:
            await connection.close()

    def states(self) -> dict[str, int]:
        return {
            row["state"]: row["count"] for row in self.rows("SELECT state, count(*) FROM tasks GROUP BY 1")
        }

    def task(self, task_id: str) -> asyncpg.Record:
        (row,) = self.rows(f"SELECT * FROM tasks WHERE message_id = '{task_id}'")
        return row

    def until_states(self, *, seconds: float = 60.0, **expected: int) -> None:
        until(f"states {expected}", lambda: self.states() == expected, seconds=seconds)

    def until_rest(self, *, seconds: float = 60.0) -> None:
        """Wait until nothing is owed and every work queue is empty."""
        until("the outbox is empty", lambda: not self.rows("SELECT id FROM outbox"), seconds=seconds)
        until("the queue is empty", lambda: self.depth() == 0, seconds=seconds)

    def depth(self, queue: str = "default") -> int:
        return asyncio.run(self._depth(queue))

    async def _depth(self, queue: str) -> int:
        connection = await aio_pika.connect(self.amqp_url)
        async with connection:
            channel = await connection.channel()
            declared = await channel.declare_queue(f"{self.prefix}.q.{queue}", passive=True)
            return declared.declaration_result.message_count or 0

    def runs(self) -> Counter[str]:
        """How often a handler began, by task id."""
        if not self.runs_file.exists():
            return Counter()
        return Counter(line.split()[1] for line in self.runs_file.read_text().splitlines())


def message(name: str, task_id: str | None, payload: object = None, **properties: object) -> aio_pika.Message:
    body = json.dumps({} if payload is None else payload).encode()
    return aio_pika.Message(
        body,
        type=name,
        message_id=task_id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        **properties,  # type: ignore[arg-type]  # whatever the test wants to send
    )


@pytest.fixture
def service(broker: Broker, database_url: str, tmp_path: Path) -> Iterator[Service]:
    with ExitStack() as running:
        yield Service(broker.url, database_url, broker.prefix, tmp_path, running)


@pytest.fixture
def other_service(
    service: Service, request: pytest.FixtureRequest
) -> Callable[[str, Mapping[str, str]], Service]:
    """Another service beside the first, on another database, in the same part of the broker."""

    def make(database_url: str, settings: Mapping[str, str]) -> Service:
        folder = service.folder / uuid4().hex[:6]
        folder.mkdir()
        return Service(
            service.amqp_url, database_url, service.prefix, folder, service.running, dict(settings)
        )

    return make

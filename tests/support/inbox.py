"""Tasks brought into any state the way a worker does it, without a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from broker_worker.message import Message, Properties, TaskId
from broker_worker.outcome import Dead, Failure, Outcome, Postponed, Reason, Succeeded
from broker_worker.outgoing import Owed
from broker_worker.ports import Delivery
from broker_worker.step import Claim, Met
from broker_worker.store.database import Database
from broker_worker.store.outbox import OutboxStore
from broker_worker.store.schema import migrate
from broker_worker.store.tasks import TaskStore
from broker_worker.store.workers import WorkerStore
from broker_worker.task import Arrival, Holder, Poisoning


@dataclass(frozen=True, slots=True)
class FakeDelivery:
    """A delivery that nobody has to settle."""

    queue: str
    properties: Properties = field(default_factory=Properties)
    body: bytes = b""
    redelivered: bool = False
    poisoning: Poisoning | None = None
    is_alive: bool = True

    async def ack(self) -> None: ...


class FakeMemory:
    """Knows every run of its own."""

    def recall(self, key: int, epoch: int) -> Holder:
        return Holder.HERE

    def remember(self, claim: Claim, delivery: Delivery) -> None: ...

    def adopt(self, key: int, epoch: int, delivery: Delivery) -> bool:
        return True


@dataclass
class Inbox:
    """A database with one worker in it."""

    database: Database
    worker: UUID
    tasks: TaskStore
    outbox: OutboxStore
    owed: list[Owed] = field(default_factory=list)

    async def arrive(self, message: Message, *, max_attempts: int = 3) -> Met:
        arrival = Arrival(message, message.digest(), max_attempts, keeps_reply=message.reply_to is not None)
        return await self.tasks.arrive(arrival, FakeDelivery(message.task.queue))

    async def claim(self, message: Message, *, max_attempts: int = 3) -> Claim:
        claim = (await self.arrive(message, max_attempts=max_attempts)).claim
        assert claim is not None
        return claim

    async def finish(self, message: Message, outcome: Outcome) -> Claim:
        claim = await self.claim(message)
        assert await self.tasks.record(claim, outcome)
        return claim

    async def succeed(self, message: Message, result: str | None = None) -> Claim:
        return await self.finish(message, Succeeded(result))

    async def die(
        self, message: Message, failure: Failure | None = None, reason: Reason = Reason.GAVE_UP
    ) -> Claim:
        """End it dead, and forget what it owes, as if the broker had confirmed that."""
        claim = await self.finish(message, Dead(reason, failure or a_failure()))
        await self.confirm_everything()
        return claim

    async def postpone(self, message: Message, delay: timedelta = timedelta(hours=2)) -> Claim:
        return await self.finish(message, Postponed(delay, a_failure()))

    async def confirm_everything(self) -> None:
        await self.execute("DELETE FROM {schema}.outbox")

    async def relay(self) -> list[Owed]:
        """Take what is due now, as a worker's relay does."""
        return await self.outbox.take(100)

    async def execute(self, query: str, **values: object) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(text(query.format(schema=self.database.schema)), values)

    async def fetch(self, query: str, **values: object) -> list[Mapping[str, Any]]:
        async with self.database.transaction() as connection:
            rows = await connection.execute(text(query.format(schema=self.database.schema)), values)
            return [dict(row) for row in rows.mappings()]

    async def count(self, table: str) -> int:
        return int((await self.fetch(f"SELECT count(*) AS n FROM {{schema}}.{table}"))[0]["n"])

    async def age(self, days: int, *, key: int) -> None:
        """Pretend that a task began and ended some days earlier."""
        await self.execute(
            """UPDATE {schema}.tasks SET created_at = created_at - :by * interval '1 day',
                 finished_at = finished_at - :by * interval '1 day' WHERE key = :key""",
            by=days,
            key=key,
        )


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Inbox]:
    """Migrate and open a database, with a worker that is alive and commits until the end."""
    database = Database.open(lambda: database_url, schema="broker_worker", pool_size=4)
    worker = uuid4()
    owed: list[Owed] = []
    tasks = TaskStore(
        database,
        worker=worker,
        memory=FakeMemory(),
        owed=owed.extend,
        grace=timedelta(minutes=5),
        keeps_payloads=False,
    )
    try:
        await migrate(database)
        await WorkerStore(database, worker=worker).register(name="test", release="0")
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(tasks.run())
            yield Inbox(database, worker, tasks, OutboxStore(database, worker=worker), owed)
            writing.cancel()
    finally:
        await database.close()


def a_message(
    id_: str = "t-1",
    *,
    queue: str = "email",
    name: str = "email.send",
    body: bytes = b"{}",
    **fields: Any,  # noqa: ANN401
) -> Message:
    return Message(TaskId(queue, name, id_), body, **fields)


def a_failure(message: str = "no", *, kind: str = "ValueError", fingerprint: str | None = "f00d") -> Failure:
    return Failure(kind, message, traceback="Traceback: line 1", fingerprint=fingerprint)

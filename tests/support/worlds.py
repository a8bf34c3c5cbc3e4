"""The same world twice: workers that share a database, in memory or in Postgres, and a test's view of it."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4

from asyncpg import Record
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.errors import StoreUnavailableError
from broker_worker.message import Message, Properties, TaskId, to_record
from broker_worker.outcome import Outcome
from broker_worker.outgoing import Owed
from broker_worker.ports import Delivery, Outbox, Rescues, TaskStore, Workers
from broker_worker.step import Claim, Met
from broker_worker.store.database import Database
from broker_worker.store.outbox import OutboxStore
from broker_worker.store.rescue import RescueStore
from broker_worker.store.rows import COLUMNS, to_message, to_task
from broker_worker.store.schema import migrate
from broker_worker.store.tasks import TaskStore as PostgresTaskStore
from broker_worker.store.workers import WorkerStore
from broker_worker.task import Arrival, Poisoning, Task
from broker_worker.testing.clock import BEGINNING
from broker_worker.testing.memory import MemoryStore
from broker_worker.testing.tables import MemoryDatabase
from broker_worker.worker.runs import Runs

GRACE = timedelta(minutes=5)
MAX_ATTEMPTS = 3
SCHEMA = "broker_worker"


@dataclass(eq=False)
class Arrived:
    """A delivery that a test can let drift."""

    message: Message
    redelivered: bool = False
    poisoning: Poisoning | None = None
    is_alive: bool = True
    acks: int = 0

    @property
    def queue(self) -> str:
        return self.message.task.queue

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def properties(self) -> Properties:
        return Properties()

    async def ack(self) -> None:
        self.acks += 1


class Membership(Protocol):
    """What a worker says of itself."""

    async def register(self) -> None: ...

    async def leave(self) -> None: ...


class Losing(Protocol):
    """What can lose the reply of a commit: of the next one where `loses_in` is 1."""

    loses_in: int


@dataclass
class Worker:
    """One process: its stores, its memory, and what it was told to publish."""

    id: UUID
    tasks: TaskStore
    outbox: Outbox
    workers: Workers
    rescues: Rescues
    membership: Membership
    losing: Losing
    runs: Runs
    owed: list[Owed]

    async def arrive(self, message: Message, **how: Any) -> Met:  # noqa: ANN401 - fields of Arrival
        """Let a delivery of `message` arrive, as it is for a worker with room unless `how` says more."""
        delivery = how.pop("delivery", None) or Arrived(message, poisoning=how.get("poisoning"))
        arrival = Arrival(message, message.digest(), MAX_ATTEMPTS, keeps_reply=message.reply_to is not None)
        return await self.tasks.arrive(replace(arrival, **how), delivery)

    async def claim(self, message: Message, **how: Any) -> Claim:  # noqa: ANN401 - fields of Arrival
        met = await self.arrive(message, **how)
        assert met.claim is not None, met.decision
        return met.claim

    async def finish(self, message: Message, outcome: Outcome) -> Claim:
        """Run `message` to an outcome."""
        claim = await self.claim(message)
        assert await self.record(claim, outcome)
        return claim

    async def record(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        recorded = await self.tasks.record(claim, outcome)
        self.runs.forget(claim)
        return recorded

    def lose_reply(self, number: int = 1) -> None:
        """Let the next commit happen (or a later one, by number), and its reply be lost."""
        self.losing.loses_in = number


@dataclass(frozen=True)
class Attempt:
    attempt: int
    epoch: int
    outcome: str
    worker: UUID | None


@dataclass(frozen=True)
class Letter:
    reason: str
    body: bytes
    task_key: int | None
    message_id: str | None


class World(ABC):
    """A database, the workers that share it, and time."""

    def __init__(self) -> None:
        self.cleanup = contextlib.AsyncExitStack()

    @abstractmethod
    async def join(self) -> Worker:
        """Start a worker: registered, its commits running."""

    @abstractmethod
    async def now(self) -> datetime: ...

    @abstractmethod
    async def pass_time(self, by: timedelta) -> None: ...

    @abstractmethod
    async def find(self, task: TaskId) -> Task | None: ...

    @abstractmethod
    async def edit(self, task: TaskId, **columns: object) -> None:
        """Change a row as nobody would, to make a rare state."""

    @abstractmethod
    async def result(self, task: TaskId) -> str | None: ...

    @abstractmethod
    async def stored(self, task: TaskId) -> Message | None:
        """What `payloads` has."""

    @abstractmethod
    async def attempts(self, task: TaskId) -> list[Attempt]: ...

    @abstractmethod
    async def letters(self) -> list[Letter]: ...

    @abstractmethod
    async def owed_epochs(self) -> list[int]:
        """The epochs of all rows of the outbox, in order."""

    async def row(self, task: TaskId) -> Task:
        found = await self.find(task)
        assert found is not None
        return found

    async def kill(self, worker: Worker) -> None:
        """Let a worker end without a word and be declared dead."""
        others = await self.join()
        for beat in await others.workers.beat({}):
            if beat.worker == worker.id:
                assert await others.workers.declare_dead(beat)


# --- in memory -------------------------------------------------------------------


class HandClock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.moment = BEGINNING

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class LosingMemoryStore(MemoryStore):
    """Loses a reply: what was committed is committed, but nobody here was told."""

    loses_in = 0
    runs: Runs

    async def arrive(self, arrival: Arrival, delivery: Delivery) -> Met:
        met = await super().arrive(arrival, delivery)
        if self._loses() and met.claim is not None:
            self.runs.forget(met.claim)
            raise StoreUnavailableError("the reply was lost")
        return met

    async def record(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        recorded = await super().record(claim, outcome)
        if self._loses():
            raise StoreUnavailableError("the reply was lost")
        return recorded

    def _loses(self) -> bool:
        self.loses_in -= 1
        return self.loses_in == 0


class MemoryWorld(World):
    """Everything in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.database = MemoryDatabase(self.clock)

    async def join(self) -> Worker:
        runs, owed, id_ = Runs(), list[Owed](), uuid4()
        store = LosingMemoryStore(self.database, worker=id_, memory=runs, owed=owed.extend, grace=GRACE)
        store.runs = runs
        await store.register()
        return Worker(id_, store, store, store, store, store, store, runs, owed)

    async def now(self) -> datetime:
        return self.clock.now()

    async def pass_time(self, by: timedelta) -> None:
        self.clock.moment += by

    async def find(self, task: TaskId) -> Task | None:
        found = self.database.tasks.get(task)
        return found.task if found else None

    async def edit(self, task: TaskId, **columns: Any) -> None:  # noqa: ANN401 - fields of Task
        row = self.database.tasks[task]
        row.task = replace(row.task, **columns)

    async def result(self, task: TaskId) -> str | None:
        return self.database.tasks[task].result

    async def stored(self, task: TaskId) -> Message | None:
        return self.database.tasks[task].message

    async def attempts(self, task: TaskId) -> list[Attempt]:
        records = self.database.tasks[task].records.values()
        return [Attempt(record.attempt, record.epoch, record.outcome, record.worker) for record in records]

    async def letters(self) -> list[Letter]:
        return [
            Letter(str(letter.reason), letter.body, letter.task_key, letter.message_id)
            for letter in self.database.letters.values()
        ]

    async def owed_epochs(self) -> list[int]:
        return [row.epoch for row in self.database.outbox.values()]


# --- in Postgres -----------------------------------------------------------------


class LosingDatabase(Database):
    """Loses the reply of a commit."""

    loses_in = 0

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        async with super().transaction() as connection:
            yield connection
        self._lose()

    async def single(self, statement: TextClause, parameters: Mapping[str, object]) -> Sequence[Record]:
        rows = await super().single(statement, parameters)
        self._lose()
        return rows

    def _lose(self) -> None:
        self.loses_in -= 1
        if self.loses_in == 0:
            raise StoreUnavailableError("the reply was lost")


@dataclass
class Member:
    """A worker's row in Postgres."""

    store: WorkerStore

    async def register(self) -> None:
        await self.store.register(name="test", release="0")

    async def leave(self) -> None:
        await self.store.leave()


@dataclass
class PostgresWorld(World):
    """A real database; `runtime_url` is what workers use, `url` what the test looks with."""

    url: str
    runtime_url: str
    admin: Database = field(init=False)

    def __post_init__(self) -> None:
        World.__init__(self)
        self.admin = Database.open(lambda: self.url, schema=SCHEMA, pool_size=2)
        self.cleanup.push_async_callback(self.admin.close)

    async def begin(self) -> None:
        await migrate(self.admin)

    async def join(self) -> Worker:
        database = LosingDatabase.open(lambda: self.runtime_url, schema=SCHEMA, pool_size=4)
        assert isinstance(database, LosingDatabase)
        self.cleanup.push_async_callback(database.close)
        runs, owed, id_ = Runs(), list[Owed](), uuid4()
        tasks = PostgresTaskStore(
            database, worker=id_, memory=runs, owed=owed.extend, grace=GRACE, keeps_payloads=False
        )
        running = asyncio.get_running_loop().create_task(tasks.run())
        self.cleanup.push_async_callback(_end, running)
        workers = WorkerStore(database, worker=id_)
        member = Member(workers)
        await member.register()
        return Worker(
            id_, tasks, OutboxStore(database, worker=id_), workers,
            RescueStore(database, worker=id_, owed=owed.extend), member, database, runs, owed,
        )  # fmt: skip

    async def now(self) -> datetime:
        async with self.admin.transaction() as connection:
            moment: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
        return moment.astimezone(UTC)

    async def pass_time(self, by: timedelta) -> None:
        """Move everything that is written down into the past, which is the same."""
        async with self.admin.transaction() as connection:
            columns = await connection.execute(
                text("""
                    SELECT table_name,
                      string_agg(format('%1$I = %1$I - CAST(\\:by AS interval)', column_name), ', ')
                    FROM information_schema.columns
                    WHERE table_schema = :schema AND data_type = 'timestamp with time zone'
                      AND table_name <> 'audit' GROUP BY table_name"""),
                {"schema": SCHEMA},
            )
            for table, assignments in columns.all():
                await connection.execute(text(f"UPDATE {SCHEMA}.{table} SET {assignments}"), {"by": by})

    async def find(self, task: TaskId) -> Task | None:
        async with self.admin.transaction() as connection:
            found = (
                await connection.execute(
                    text(f"""
                        SELECT {COLUMNS} FROM {SCHEMA}.tasks t
                        WHERE queue = :queue AND name = :name AND message_id = :id"""),
                    task._asdict(),
                )
            ).first()
        return to_task(found) if found else None

    async def edit(self, task: TaskId, **columns: object) -> None:
        assignments = ", ".join(f"{name} = :new_{name}" for name in columns)
        async with self.admin.transaction() as connection:
            await connection.execute(
                text(f"""
                    UPDATE {SCHEMA}.tasks SET {assignments}
                    WHERE queue = :queue AND name = :name AND message_id = :id"""),
                {**task._asdict(), **{f"new_{name}": value for name, value in columns.items()}},
            )

    async def result(self, task: TaskId) -> str | None:
        rows = await self._select("SELECT CAST(result AS text) FROM {schema}.tasks WHERE key = :key", task)
        value: str | None = rows[0][0]
        return value

    async def stored(self, task: TaskId) -> Message | None:
        rows = await self._select(
            "SELECT body, properties FROM {schema}.payloads WHERE task_key = :key", task
        )
        return to_message(await self.row(task), *rows[0]) if rows else None

    async def attempts(self, task: TaskId) -> list[Attempt]:
        rows = await self._select(
            """
            SELECT attempt, epoch, outcome, worker FROM {schema}.attempts
            WHERE task_key = :key ORDER BY epoch""",
            task,
        )
        return [Attempt(*row) for row in rows]

    async def letters(self) -> list[Letter]:
        rows = await self._select(
            "SELECT reason, body, task_key, message_id FROM {schema}.dead_letters ORDER BY failed_at"
        )
        return [Letter(*row) for row in rows]

    async def owed_epochs(self) -> list[int]:
        return [row[0] for row in await self._select("SELECT epoch FROM {schema}.outbox ORDER BY id")]

    async def _select(self, statement: str, task: TaskId | None = None) -> Sequence[Any]:
        values = {"key": (await self.row(task)).key} if task else {}
        async with self.admin.transaction() as connection:
            return (await connection.execute(text(statement.format(schema=SCHEMA)), values)).all()


async def _end(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.wait([running])


def said(message: Message | None) -> tuple[bytes, dict[str, object]] | None:
    """What of a message is stored: everything but its epoch."""
    return (message.body, to_record(message)) if message is not None else None

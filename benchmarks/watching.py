"""What the driver sees of a run from outside: finished rows, and the depth of the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiormq
import aiormq.abc
import asyncpg

from benchmarks.contestant import Contestant
from benchmarks.prefill import depth


@dataclass(frozen=True, slots=True)
class Watch:
    """Open for as long as one contestant runs; its connections are made before the clock begins."""

    contestant: Contestant
    messages: int
    database: asyncpg.Connection
    broker: aiormq.abc.AbstractConnection | None
    queue: str

    async def finished(self) -> int:
        """Return how many rows say that they are finished; all, where there are no such rows."""
        if self.contestant.finished is None:
            return self.messages
        rows: int = await self.database.fetchval(self.contestant.finished)
        return rows

    async def taken(self) -> int:
        """Return how many messages are not ready in the queue: delivered, or gone."""
        return self.messages - await self.left()

    async def left(self) -> int:
        """Return how many messages are ready; 0 where there is no queue of RabbitMQ."""
        return 0 if self.broker is None else await depth(self.broker, self.queue)


@asynccontextmanager
async def watching(contestant: Contestant, given: Mapping[str, str]) -> AsyncIterator[Watch]:
    """Watch the run that was told what is `given`."""
    async with AsyncExitStack() as opened:
        database = await asyncpg.connect(given["BENCH_DATABASE_URL"])
        opened.push_async_callback(database.close)
        broker = None
        if contestant.queue is not None:
            broker = await aiormq.connect(given["BENCH_AMQP_URL"])
            opened.push_async_callback(broker.close)
        yield Watch(contestant, int(given["BENCH_MESSAGES"]), database, broker, given["BENCH_QUEUE"])

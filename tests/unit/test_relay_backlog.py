"""A backlog that does not fit into memory: how fast it goes, and what of it is there at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from broker_worker.errors import PublishError
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing, Owed
from broker_worker.services.relay import IN_FLIGHT, REMEMBERED, Relay
from broker_worker.testing.clock import in_virtual_time

BACKLOG = 10 * IN_FLIGHT + 1
CONFIRM = 0.01  # seconds


class Rows:
    """An outbox that knows how much of it is taken and not settled."""

    def __init__(self, backlog: int) -> None:
        self.lying = [owed(id_) for id_ in range(backlog)]
        self.deleted: set[int] = set()
        self.taken = 0
        self.most_taken = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def take(self, limit: int) -> list[Owed]:
        await self.gate.wait()
        found, self.lying = self.lying[:limit], self.lying[limit:]
        self.taken += len(found)
        self.most_taken = max(self.most_taken, self.taken)
        return found

    async def delete(self, ids: Sequence[int]) -> None:
        self.deleted |= set(ids)
        self.taken -= len(ids)

    async def put_back(self, ids: Sequence[int]) -> None:
        self.lying += [owed(id_) for id_ in ids]

    async def return_unsent(self, ids: Sequence[int]) -> None:
        await self.put_back(ids)


class Broker:
    """Confirms after a moment."""

    def __init__(self) -> None:
        self.published: list[Outgoing] = []

    async def publish(self, outgoing: Outgoing) -> None:
        await asyncio.sleep(CONFIRM)
        self.published.append(outgoing)

    def begin(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        self.published.append(outgoing)
        asyncio.get_running_loop().call_later(CONFIRM, done, None)
        return True


def owed(id_: int) -> Owed:
    return Owed(id_, Outgoing(Kind.COPY, "email", Properties(), b""))


class Scene:
    def __init__(self, backlog: int) -> None:
        self.rows = Rows(backlog)
        self.broker = Broker()
        self.relay = Relay(self.rows, self.broker, emit=lambda _: None)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.TaskGroup]:
        async with asyncio.TaskGroup() as tasks:
            run = tasks.create_task(self.relay.run())
            yield tasks
            async with asyncio.timeout(100):
                await self.relay.drain()
            run.cancel()


@in_virtual_time
async def test_one_turn_publishes_a_backlog_however_large_as_fast_as_it_is_confirmed() -> None:
    scene = Scene(BACKLOG)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async with scene.running():
        await scene.relay.run_once()

    assert scene.rows.deleted == set(range(BACKLOG))
    # half of what may be under way is taken at once, and none of it waits for another turn
    assert loop.time() - began < CONFIRM * (BACKLOG / (IN_FLIGHT / 2) + 5)


@in_virtual_time
async def test_of_a_backlog_no_more_is_in_memory_than_may_be_under_way() -> None:
    scene = Scene(BACKLOG)

    async with scene.running():
        await scene.relay.run_once()

    assert scene.rows.most_taken <= 2 * IN_FLIGHT  # confirmed ones count until they are deleted


@in_virtual_time
async def test_what_did_not_fit_into_memory_follows_in_the_next_turn() -> None:
    scene = Scene(0)

    async with scene.running():
        scene.relay.promptly([owed(id_) for id_ in range(REMEMBERED + BACKLOG)])
        await asyncio.sleep(1)
        await scene.relay.run_once()

    assert scene.rows.deleted == set(range(REMEMBERED + BACKLOG))


@in_virtual_time
async def test_the_end_of_a_worker_does_not_wait_for_a_backlog() -> None:
    scene = Scene(20 * BACKLOG)

    async with scene.running() as tasks:
        turn = tasks.create_task(scene.relay.run_once())
        await asyncio.sleep(CONFIRM * 5)
        await scene.relay.drain()
        turn.cancel()

    assert scene.rows.taken == 0  # whatever was taken is confirmed and deleted
    assert len(scene.rows.lying) > 15 * BACKLOG


@in_virtual_time
async def test_the_end_of_a_worker_waits_for_what_it_is_about_to_take() -> None:
    scene = Scene(1)
    scene.rows.gate.clear()

    async with scene.running() as tasks:
        turn = tasks.create_task(scene.relay.run_once())
        await asyncio.sleep(0)
        tasks.create_task(_later(scene.rows.gate.set))
        await scene.relay.drain()
        assert scene.rows.deleted == {0}
        await turn


async def _later(then: object) -> None:
    await asyncio.sleep(1)
    assert callable(then)
    then()

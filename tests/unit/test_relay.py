from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest

from broker_worker.errors import PublishError, StoreUnavailableError, UnsentError
from broker_worker.events import Event, PublishFailed, ServiceFailed, ServiceWorked
from broker_worker.message import Properties
from broker_worker.outgoing import Kind, Outgoing, Owed
from broker_worker.services.relay import IN_FLIGHT, REMEMBERED, Relay
from broker_worker.testing.clock import in_virtual_time


def owed(id_: int, key: str = "email") -> Owed:
    return Owed(id_, Outgoing(Kind.COPY, key, Properties(), b""))


class Rows:
    """An outbox that notes what it is asked."""

    def __init__(self) -> None:
        self.lying: list[Owed] = []
        self.deleted: list[int] = []
        self.put_back_ids: list[int] = []
        self.unsent_ids: list[int] = []
        self.limits: list[int] = []
        self.deletes = 0
        self.failures = 0
        self.error: Exception = StoreUnavailableError("away")

    async def take(self, limit: int) -> list[Owed]:
        self.limits.append(limit)
        taken, self.lying = self.lying[:limit], self.lying[limit:]
        return taken

    async def delete(self, ids: Sequence[int]) -> None:
        self.deletes += 1
        await asyncio.sleep(1)
        if self.failures:
            self.failures -= 1
            raise self.error
        self.deleted += ids

    async def put_back(self, ids: Sequence[int]) -> None:
        self.put_back_ids += ids

    async def return_unsent(self, ids: Sequence[int]) -> None:
        self.unsent_ids += ids


class Broker:
    """A publisher whose confirms take a second; `refused` is what it returns."""

    def __init__(self, *, is_ready: bool) -> None:
        self.is_ready = is_ready
        self.published: list[Outgoing] = []
        self.refused: set[str] = set()
        self.is_away = False
        self.in_flight = 0
        self.most_in_flight = 0

    async def publish(self, outgoing: Outgoing) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(1)
        self.in_flight -= 1
        if self.is_away:
            raise UnsentError("nobody there")
        if outgoing.routing_key in self.refused:
            raise PublishError("no such queue")
        self.published.append(outgoing)

    def begin(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        if self.is_ready:
            asyncio.ensure_future(self.publish(outgoing)).add_done_callback(partial(told, done))
        return self.is_ready


def told(done: Callable[[PublishError | None], None], published: asyncio.Future[None]) -> None:
    error = published.exception()
    assert error is None or isinstance(error, PublishError)
    done(error)


class Scene:
    def __init__(self, *, is_ready: bool) -> None:
        self.rows = Rows()
        self.broker = Broker(is_ready=is_ready)
        self.events: list[Event] = []
        self.relay = Relay(self.rows, self.broker, emit=self.events.append)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Run the relay, and end it only when nothing is left in memory."""
        async with asyncio.TaskGroup() as tasks:
            run = tasks.create_task(self.relay.run())
            yield self.relay
            async with asyncio.timeout(1000):
                await self.relay.drain()
            run.cancel()


@pytest.fixture(params=[True, False], ids=["begun", "awaited"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(is_ready=request.param)


@in_virtual_time
async def test_what_is_confirmed_is_deleted(scene: Scene) -> None:
    async with scene.running() as relay:
        relay.promptly([owed(1), owed(2)])

    assert len(scene.broker.published) == 2
    assert scene.rows.deleted == [1, 2]
    assert scene.events == []


@in_virtual_time
async def test_nothing_is_deleted_before_it_is_confirmed(scene: Scene) -> None:
    async with scene.running() as relay:
        relay.promptly([owed(1)])
        await asyncio.sleep(0.9)
        assert (scene.broker.in_flight, scene.rows.deletes) == (1, 0)


@in_virtual_time
async def test_an_error_that_nobody_foresaw_costs_the_rows_of_one_batch_their_time_and_ends_nothing(
    scene: Scene,
) -> None:
    scene.rows.failures, scene.rows.error = 1, RuntimeError("permission denied")

    async with scene.running() as relay:
        relay.promptly([owed(1)])
        await asyncio.sleep(5)
        relay.promptly([owed(2)])

    assert scene.rows.deleted == [2]
    assert scene.events == [ServiceFailed("relay", scene.rows.error)]


@in_virtual_time
async def test_what_is_refused_is_put_back_and_said(scene: Scene) -> None:
    scene.broker.refused = {"nowhere"}

    async with scene.running() as relay:
        relay.promptly([owed(1), owed(2, "nowhere")])

    assert (scene.rows.deleted, scene.rows.put_back_ids) == ([1], [2])
    assert scene.events == [PublishFailed("copy", "nowhere", "no such queue")]


@in_virtual_time
async def test_without_a_way_to_the_broker_all_goes_back_at_once_and_nothing_is_held_against_it(
    scene: Scene,
) -> None:
    scene.broker.is_away = True

    async with scene.running() as relay:
        relay.promptly([owed(id_) for id_ in range(IN_FLIGHT + 300)])
        await asyncio.sleep(1.5)
        returned_at_once = sorted(scene.rows.unsent_ids)
        scene.broker.is_away = False
        relay.promptly([owed(-1)])

    assert returned_at_once == list(range(IN_FLIGHT + 300))
    assert scene.rows.put_back_ids == []
    assert scene.rows.deleted == [-1]
    assert scene.events == []


@in_virtual_time
async def test_a_turn_takes_what_lies_about_and_publishes_it(scene: Scene) -> None:
    scene.rows.lying = [owed(1), owed(2)]

    async with scene.running() as relay:
        await relay.run_once()

    assert scene.rows.deleted == [1, 2]
    assert scene.events == [ServiceWorked("relay", "taken", 2)]


@in_virtual_time
async def test_a_turn_that_finds_nothing_says_nothing(scene: Scene) -> None:
    await scene.relay.run_once()

    assert scene.events == []


@in_virtual_time
async def test_no_more_are_unconfirmed_at_once_than_allowed(scene: Scene) -> None:
    async with scene.running() as relay:
        relay.promptly([owed(id_) for id_ in range(IN_FLIGHT * 2)])

    assert scene.broker.most_in_flight == IN_FLIGHT
    assert len(scene.rows.deleted) == IN_FLIGHT * 2


@in_virtual_time
async def test_deletes_are_batched(scene: Scene) -> None:
    async with scene.running() as relay:
        relay.promptly([owed(id_) for id_ in range(IN_FLIGHT)])

    assert scene.rows.deletes <= 2


@in_virtual_time
async def test_a_turn_takes_no_more_than_there_is_room_for(scene: Scene) -> None:
    async with scene.running() as relay:
        relay.promptly([owed(id_) for id_ in range(150)])
        await relay.run_once()
        relay.promptly([owed(id_) for id_ in range(150, 300)])
        await relay.run_once()

    assert scene.rows.limits == [IN_FLIGHT - 150]


@in_virtual_time
async def test_memory_is_bounded_and_the_rest_is_found_again_in_the_database(scene: Scene) -> None:
    scene.relay.promptly([owed(id_) for id_ in range(REMEMBERED + 500)])
    scene.relay.promptly([owed(-1)])

    async with scene.running():
        pass

    assert sorted(scene.rows.deleted) == list(range(REMEMBERED))


@in_virtual_time
async def test_a_database_that_is_away_does_not_stop_the_relay(scene: Scene) -> None:
    scene.rows.failures = 1

    async with scene.running() as relay:
        relay.promptly([owed(1)])
        await asyncio.sleep(10)
        relay.promptly([owed(2)])

    assert scene.rows.deleted == [2]

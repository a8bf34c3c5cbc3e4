"""Gather concurrent writes into one transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from broker_worker.errors import StoreDataError

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Writes that wait for the commit they share.

    There is no timer: while one commit is on its way the next batch fills up, so an
    idle worker waits for nothing and a busy one batches more. A batch holds a task
    once; a second write for it goes into the next batch.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        key: Callable[[Item], Hashable],
        max_batch: int = 200,  # beyond this a statement's own cost dominates and latency only grows
    ) -> None:
        self._commit = commit
        self._key = key
        self._max_batch = max_batch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._arrived = asyncio.Event()
        self._is_settled = asyncio.Event()
        self._is_settled.set()

    def write(self, item: Item) -> asyncio.Future[Result]:
        """Return what is done once `item` is committed; it raises what its commit raised.

        Cancelled halfway, the write may still happen.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        committed: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append((item, committed))
        self._is_settled.clear()
        self._arrived.set()
        return committed

    async def run(self) -> None:
        """Commit batches until cancelled; whoever still waits then is told so."""
        try:
            while True:
                await self._arrived.wait()
                batch = self._take()
                if batch:
                    await self._settle(batch)
                if not self._waiting:
                    self._arrived.clear()
                    self._is_settled.set()
        finally:
            for _, committed in self._waiting:
                committed.cancel()

    async def settled(self) -> None:
        """Return once no batch is on its way: whoever gave up waiting may still have been written."""
        await self._is_settled.wait()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        later: list[tuple[Item, asyncio.Future[Result]]] = []
        keys: set[Hashable] = set()
        while self._waiting and len(batch) < self._max_batch:
            item, committed = self._waiting.popleft()
            if committed.cancelled():  # nobody waits for it, and nothing of it is written
                continue
            key = self._key(item)
            if key in keys:
                later.append((item, committed))
            else:
                keys.add(key)
                batch.append((item, committed))
        self._waiting.extendleft(reversed(later))
        return batch

    async def _settle(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        """Commit a batch and tell every writer; one bad item does not fail its neighbours."""
        try:
            results = await self._commit([item for item, _ in batch])
        except StoreDataError as error:
            if len(batch) == 1:
                return _fail(batch, error)
            for alone in batch:
                await self._settle([alone])
        except asyncio.CancelledError:
            _cancel(batch)
            raise
        except Exception as error:  # noqa: BLE001 - handed to those who wait for it
            _fail(batch, error)
        else:
            _answer(batch, results)
        return None


def _answer(batch: Sequence[tuple[Item, asyncio.Future[Result]]], results: Sequence[Result]) -> None:
    for (_, committed), result in zip(batch, results, strict=True):
        if not committed.done():
            committed.set_result(result)


def _cancel(batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
    for _, committed in batch:
        committed.cancel()


def _fail(batch: Sequence[tuple[Item, asyncio.Future[Result]]], error: Exception) -> None:
    for _, committed in batch:
        if not committed.done():
            committed.set_exception(error)

"""Publishes the outbox: what this process has just written at once, and what others left."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial

from broker_worker.errors import PublishError, StoreUnavailableError, UnsentError
from broker_worker.events import Emit, PublishFailed, ServiceFailed, ServiceWorked
from broker_worker.outgoing import Owed
from broker_worker.ports import Outbox, Publisher

IN_FLIGHT = 200  # unconfirmed publishes at once
REMEMBERED = 1000  # messages kept in memory; the rest is found again in the database


class Relay:
    """A row is deleted once the broker has confirmed it; a crash in between sends it twice."""

    def __init__(self, outbox: Outbox, publisher: Publisher, *, emit: Emit) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._emit = emit
        self._waiting: deque[Owed] = deque()
        self._confirmed: list[int] = []
        self._refused: list[int] = []
        self._unsent: list[int] = []
        self._publishing = 0
        self._is_taking = False
        self._is_draining = False
        self._is_settling = False
        self._work = asyncio.Event()
        self._results = asyncio.Event()
        self._half_done = asyncio.Event()

    def promptly(self, owed: Sequence[Owed]) -> None:
        """Publish rows that were just committed; what does not fit into memory is left to any relay."""
        room = REMEMBERED - len(self._waiting)
        self._waiting.extend(owed[:room])
        self._refused.extend(each.id for each in owed[room:])
        self._results.set()
        self._work.set()

    async def run_once(self) -> None:
        """Take what is due, left by a dead worker, or left lying: all of it, as fast as it is confirmed."""
        while (room := IN_FLIGHT - self._load) > 0 and not self._is_draining:
            if await self._take(room) < room:
                return
            self._half_done.clear()
            await self._half_done.wait()

    async def run(self) -> None:
        """Publish and settle until cancelled."""
        async with asyncio.TaskGroup() as publishes:
            settling = publishes.create_task(self._settle())
            settling.add_done_callback(lambda _: self._work.set())
            while True:
                await self._work.wait()
                self._work.clear()
                if settling.done():
                    raise RuntimeError("what the broker confirms is not deleted any more")
                while self._waiting and self._publishing < IN_FLIGHT:
                    owed = self._waiting.popleft()
                    self._publishing += 1  # here, so that `drain` sees it before a task begins
                    if not self._publisher.begin(owed.outgoing, partial(self._note, owed)):
                        publishes.create_task(self._publish(owed))

    async def drain(self) -> None:
        """Take no more, and return once nothing is left to publish or to settle; for the end of a worker."""
        self._is_draining = True
        while self._load or self._has_results or self._is_taking or self._is_settling:
            self._results.set()
            await asyncio.sleep(0.02)

    @property
    def _load(self) -> int:
        return len(self._waiting) + self._publishing

    @property
    def _has_results(self) -> bool:
        return bool(self._confirmed or self._refused or self._unsent)

    async def _take(self, limit: int) -> int:
        self._is_taking = True
        try:
            taken = await self._outbox.take(limit)
            self.promptly(taken)
        finally:
            self._is_taking = False
        if taken:
            self._emit(ServiceWorked("relay", "taken", len(taken)))
        return len(taken)

    async def _publish(self, owed: Owed) -> None:
        try:
            await self._publisher.publish(owed.outgoing)
        except PublishError as error:
            self._note(owed, error)
        except BaseException:
            self._publishing -= 1  # no answer: the row stays as it is, and this relay ends
            raise
        else:
            self._note(owed, None)

    def _note(self, owed: Owed, error: PublishError | None) -> None:
        """Remember what became of a publish, and let the next ones begin."""
        if error is None:
            self._confirmed.append(owed.id)
        elif isinstance(error, UnsentError):
            # there is no way out at the moment: what waits goes back with it, before its two minutes are over
            self._unsent += [owed.id, *(each.id for each in self._waiting)]
            self._waiting.clear()
        else:
            self._refused.append(owed.id)
            self._emit(PublishFailed(owed.outgoing.kind, owed.outgoing.routing_key, str(error)))
        self._publishing -= 1
        self._results.set()
        if self._waiting:
            self._work.set()
        if self._load <= IN_FLIGHT // 2:
            self._half_done.set()

    async def _settle(self) -> None:
        """Delete what is confirmed and put back what is refused, in batches that fill meanwhile."""
        while True:
            await self._results.wait()
            self._results.clear()
            confirmed, self._confirmed = self._confirmed, []
            refused, self._refused = self._refused, []
            unsent, self._unsent = self._unsent, []
            self._is_settling = True
            try:
                if confirmed:
                    await self._outbox.delete(confirmed)
                if refused:
                    await self._outbox.put_back(refused)
                if unsent:
                    await self._outbox.return_unsent(unsent)
            except StoreUnavailableError:
                # not deleted: sent again after two minutes, and known as a duplicate where it arrives
                continue
            except Exception as error:  # noqa: BLE001 - the same; it must not end what runs
                self._emit(ServiceFailed("relay", error))
            finally:
                self._is_settling = False

"""Where deliveries come in: each becomes a task of the event loop that this process owns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from broker_worker.events import Emit, ServiceFailed
from broker_worker.ports import Clock, Delivery
from broker_worker.worker.patience import Patience

CANCEL_WAIT = timedelta(seconds=1.5)  # for handlers to give in; what ignores a cancellation is left behind


class Intake:
    """Carries each delivery in a task of its own; the prefetch bounds how many.

    The tasks are kept in a set and not in a TaskGroup: a group waits for its children
    for ever, and a handler may ignore its cancellation.
    """

    def __init__(
        self,
        process: Callable[[Delivery], Awaitable[None]],
        *,
        start_over: Callable[[Delivery], Awaitable[None]],
        name: str,
        clock: Clock,
        random: Callable[[], float],
        emit: Emit,
    ) -> None:
        """Hand every delivery to `process`; `name` is what events call this intake.

        `start_over` processes one for which `process`, or itself, has failed.
        """
        self._process = process
        self._start_over = start_over
        self._name = name
        self._clock = clock
        self._random = random
        self._emit = emit
        self._in_flight: set[asyncio.Task[None]] = set()
        self._is_open = True
        self._is_cut = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self, delivery: Delivery) -> None:
        """Begin to carry a delivery; once `drain` has begun it is left to go back with its channel."""
        if self._is_open:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            task = self._loop.create_task(self._carry(delivery))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def drain(self, grace: timedelta, hurry: asyncio.Event) -> None:
        """Take no more, and give what is in flight until `grace` is over or `hurry` is set."""
        self._is_open = False
        hurried = asyncio.ensure_future(hurry.wait())  # noqa: TID251 - cancelled below
        deadline = self._clock.monotonic() + grace.total_seconds()
        try:
            while self._in_flight and not hurry.is_set() and self._clock.monotonic() < deadline:
                await asyncio.wait(
                    {hurried, *self._in_flight},
                    timeout=deadline - self._clock.monotonic(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            hurried.cancel()

    async def cut(self) -> int:
        """Cancel what is still in flight; the number that ignored it."""
        left = self.abandon()
        if left:
            await asyncio.wait(left, timeout=CANCEL_WAIT.total_seconds())
        return sum(not task.done() for task in left)

    def abandon(self) -> set[asyncio.Task[None]]:
        """Cancel what is still in flight, for good, and wait for none of it."""
        self._is_open, self._is_cut = False, True
        left = set(self._in_flight)
        for task in left:
            task.cancel()
        return left

    async def _carry(self, delivery: Delivery) -> None:
        """Process a delivery; an error of ours is shown and tried again, and stops nothing else."""
        patience = Patience(self._clock, self._random)
        process = self._process
        while True:
            try:
                return await process(delivery)
            except asyncio.CancelledError as error:
                if self._is_cut or (task := asyncio.current_task()) is None:
                    raise
                task.uncancel()  # nobody of us wanted that: the delivery would lie here for ever
                self._emit(ServiceFailed(self._name, error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the other deliveries go on
                self._emit(ServiceFailed(self._name, error))
            await patience.pause()
            process = self._start_over

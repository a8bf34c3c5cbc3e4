"""The client of a program without an event loop, or with one that is none of our business."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from broker_worker.cancellation import cancel
from broker_worker.client.client import Client, environment_options
from broker_worker.client.overloads import (
    ClientOptions,
    HasRun,
    Model,
    PublishOptions,
    Takes,
    TakesMembers,
    TakesNothing,
    TakesSecond,
)
from broker_worker.errors import BrokerWorkerError
from broker_worker.registry import Registry
from broker_worker.store.status import TaskStatus

T = TypeVar("T")

CLOSE_TIMEOUT = 15.0  # seconds; each connection closes in fewer


class SyncClient:
    """`Client` with methods that block: for Django, scripts, and any thread of them.

    Its event loop is its own, in a thread that starts at the first call and ends with
    `close`, or with the program. After a fork the child has a loop and connections of its own.
    """

    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        """Prepare, with the arguments of `Client`."""
        self._options = options
        self._begin()
        _clients.add(self)

    @classmethod
    def from_environment(cls, *, registry: Registry | None = None, queue: str | None = None) -> Self:
        """Do what `Client.from_environment` does."""
        return cls(**environment_options(os.environ, registry=registry, queue=queue))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, within seconds; the client can't be used any more."""
        self._end()

    @overload
    def publish(self, task: str, payload: object = None, **options: Unpack[PublishOptions]) -> str: ...
    @overload
    def publish(
        self, task: type[HasRun[Model]], payload: Model, **options: Unpack[PublishOptions]
    ) -> str: ...
    @overload
    def publish(self, task: Takes[Model], payload: Model, **options: Unpack[PublishOptions]) -> str: ...
    @overload
    def publish(self, task: TakesSecond[Model], payload: Model, **options: Unpack[PublishOptions]) -> str: ...
    @overload
    def publish(self, task: TakesNothing, **options: Unpack[PublishOptions]) -> str: ...
    @overload
    def publish(
        self, task: TakesMembers, payload: Mapping[str, object], **options: Unpack[PublishOptions]
    ) -> str: ...

    def publish(
        self,
        task: str | Callable[..., object],
        payload: object = None,
        **options: Unpack[PublishOptions],
    ) -> str:
        """Publish a task as `Client.publish` does; its id, once it is confirmed."""
        return self._home.call(
            lambda client: client.publish(task, payload, **options)  # type: ignore[arg-type]  # an overload took it
        )

    def cancel(
        self,
        id: str,  # noqa: A002 - the word of the message contract
        *,
        queue: str | None = None,
        name: str | None = None,
        actor: str | None = None,
    ) -> bool:
        """Cancel a task as `Client.cancel` does."""
        return self._home.call(lambda client: client.cancel(id, queue=queue, name=name, actor=actor))

    def status(self, id: str, *, queue: str | None = None, name: str | None = None) -> TaskStatus | None:  # noqa: A002
        """Look where a task stands, as `Client.status` does."""
        return self._home.call(lambda client: client.status(id, queue=queue, name=name))

    def wait(
        self,
        id: str,  # noqa: A002 - the word of the message contract
        *,
        queue: str | None = None,
        name: str | None = None,
        timeout: timedelta | float | None = None,
    ) -> TaskStatus:
        """Wait until a task has ended, as `Client.wait` does."""
        return self._home.call(lambda client: client.wait(id, queue=queue, name=name, timeout=timeout))

    def _begin(self) -> None:
        self._home = _Home(self._options)
        self._end = weakref.finalize(self, self._home.close)  # also at the end of the program

    def _begin_after_fork(self) -> None:
        """Leave the parent's thread and connections alone: they are there, and not here."""
        self._end.detach()
        _inherited.append(self._home)
        self._begin()


class _Home:
    """A client, and the thread with the event loop that it lives on."""

    def __init__(self, options: ClientOptions) -> None:
        self._client = Client(**options)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_begun = threading.Event()
        self._fault: Exception | None = None  # why there is no loop
        self._is_closed = False
        self._stopped = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()

    def call(self, use: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Run what `use` makes on the loop, and block until it has ended; an interrupt ends it."""
        with self._lock:  # what is accepted before the loop is told to stop is also answered
            loop = self._running_loop()
            future = asyncio.run_coroutine_threadsafe(self._called(use), loop)
        try:
            return future.result()
        except CancelledError:
            raise BrokerWorkerError("the client was closed meanwhile") from None
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what is under way, close the client, end the thread. Repeatable."""
        with self._lock:
            self._is_closed = True
            thread, loop = self._thread, self._loop
        if thread is None or loop is None or not thread.is_alive():
            return
        loop.call_soon_threadsafe(self._stopped.set)
        if thread is not threading.current_thread():  # where a collection of garbage may happen
            thread.join(CLOSE_TIMEOUT)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._is_closed:
            raise BrokerWorkerError("the client is closed")
        if self._thread is None or self._thread.ident is None:  # or an interrupt came before it had started
            self._has_begun.clear()
            self._thread = threading.Thread(target=self._run, name="broker_worker client", daemon=True)
            self._thread.start()
        self._has_begun.wait()
        if self._loop is None:
            raise BrokerWorkerError(f"the client can't have an event loop: {self._fault}") from self._fault
        return self._loop

    def _run(self) -> None:
        if self._thread is not threading.current_thread():
            return
        try:
            # made here, where no interrupt comes: one halfway would leave it to nobody
            self._loop = loop = asyncio.new_event_loop()
        except Exception as error:  # noqa: BLE001 - raised where it was called
            self._fault, self._thread = error, None  # the next call tries again
            return
        finally:
            self._has_begun.set()
        # not asyncio.run: it would start a thread in the end, which an ending interpreter refuses
        try:
            loop.run_until_complete(self._serve())
        finally:
            loop.close()

    async def _serve(self) -> None:
        await self._stopped.wait()
        await cancel(self._calls)
        await self._client.close()
        await cancel([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])

    async def _called(self, use: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it runs as one
        self._calls.add(task)
        try:
            return await use(self._client)
        finally:
            self._calls.discard(task)


_clients: weakref.WeakSet[SyncClient] = weakref.WeakSet()
_inherited: list[_Home] = []  # kept for good: to collect it would touch what the parent uses


def _begin_after_fork() -> None:
    for client in list(_clients):
        client._begin_after_fork()  # noqa: SLF001 - this module's own


os.register_at_fork(after_in_child=_begin_after_fork)

"""Run a handler: whatever happens becomes an outcome."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from broker_worker.failure import Refusal
from broker_worker.handler import Handler, Limits
from broker_worker.outcome import Dead, Outcome, Succeeded
from broker_worker.payload import Arguments
from broker_worker.retry import AttemptTimeoutError, follow_up
from broker_worker.context import Context, current_task


class Executor:
    """Runs attempts: coroutines on the event loop, plain functions in threads of its own.

    A thread can't be stopped. One that outlives its timeout, or the worker's
    grace, is abandoned: it runs on and keeps its place in the pool, its attempt is
    over, and what it returns or raises goes nowhere.
    """

    def __init__(
        self, *, limits: Limits, threads: int, max_result_bytes: int, random: Callable[[], float]
    ) -> None:
        """Take the settings' `limits`; `random` draws from [0, 1) for the backoff."""
        self._limits = limits
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="broker-worker-handler")
        self._max_result_bytes = max_result_bytes
        self._random = random

    async def execute(self, handler: Handler, arguments: Arguments, context: Context) -> Outcome:
        """Run one attempt.

        Raises nothing but `CancelledError`, when the caller was cancelled and the
        handler gave in; the attempt then has no outcome. A handler that answers a
        cancellation by returning or by another error has one.
        """
        limits = handler.limits(self._limits)
        cancels_on_entry = _cancels_pending()
        token = current_task.set(context)
        try:
            returned = await self._run(handler, arguments, context, limits.timeout)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _cancels_pending() > cancels_on_entry:
                raise
            return follow_up(error, attempt=context.attempt, policy=limits.policy, jitter=self._random())
        finally:
            current_task.reset(token)
        return self._conclude(handler, returned)

    def close(self) -> None:
        """Start no more threads and wait for none: their attempts are over."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(
        self, handler: Handler, arguments: Arguments, context: Context, limit: timedelta
    ) -> object:
        keywords = dict(arguments)
        if handler.context_parameter is not None:
            keywords[handler.context_parameter] = context
        deadline = asyncio.timeout(limit.total_seconds())
        try:
            async with deadline:
                if handler.is_async:
                    returned = handler.function(**keywords)
                else:
                    returned = await self._run_in_thread(lambda: handler.function(**keywords))
                # a plain function may return an awaitable: a coroutine function behind a decorator
                return await returned if inspect.isawaitable(returned) else returned
        except TimeoutError as error:
            if deadline.expired():  # else it is the handler's own
                raise AttemptTimeoutError(limit) from error.__cause__  # the cancellation: where it was
            raise

    async def _run_in_thread(self, call: Callable[[], object]) -> object:
        inside = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        ended = await loop.run_in_executor(self._threads, inside.run, _end_of, call)
        if isinstance(ended, _Raised):
            raise ended.error
        return ended

    def _conclude(self, handler: Handler, returned: object) -> Outcome:
        try:
            return Succeeded(handler.serialise(returned, max_bytes=self._max_result_bytes))
        except Refusal as refusal:
            return Dead(refusal.reason, refusal.failure)


@dataclass(frozen=True, slots=True)
class _Raised:
    """An error on its way out of a thread. As a value: a future can't carry a StopIteration."""

    error: BaseException


def _end_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - raised again on the event loop
        return _Raised(error)


def _cancels_pending() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0

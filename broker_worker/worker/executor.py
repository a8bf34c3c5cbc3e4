"""Run a handler: whatever happens becomes an outcome."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import CoroutineType

from broker_worker.cancellation import cancels
from broker_worker.context import BaseContext, current_task
from broker_worker.errors import (
    BrokerWorkerError,
    ClaimLostError,
    CommitUnknownError,
    ConfigurationError,
    StoreUnavailableError,
)
from broker_worker.failure import Refusal, tamed
from broker_worker.handler import PROCESS, THREAD, Handler, Limits, LimitsByHandler
from broker_worker.middleware import CallNext
from broker_worker.outcome import Cancelled, Dead, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.payload import Arguments
from broker_worker.ports import ChildProcess, ChildProcesses, Clock, TaskStore, Transactions
from broker_worker.retry import AttemptTimeoutError, follow_up, says_what_follows
from broker_worker.step import Claim
from broker_worker.values import dataclass
from broker_worker.worker.hands import AttemptHands, Tools
from broker_worker.worker.patience import Patience
from broker_worker.worker.resources import Resources
from broker_worker.worker.stop import Stop, StopReason

HARD_AFTER = timedelta(seconds=5)  # from being asked to end until an attempt is left behind
SHUTDOWN_WAIT = timedelta(seconds=1)  # the same, when the worker itself ends


class NotCompletedError(BrokerWorkerError):
    """A handler asked for its completion and returned without having committed it."""


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """Until a task's deadline: told once by the database's clock, counted on by our monotonic one."""

    left: timedelta | None
    since: float

    def at(self, monotonic: float) -> timedelta | None:
        """What is left at a later moment; nothing where there is no deadline."""
        return None if self.left is None else self.left - timedelta(seconds=monotonic - self.since)


@dataclass(slots=True)
class Run:
    """One attempt, ready to begin."""

    handler: Handler
    arguments: Arguments
    claim: Claim
    context: BaseContext
    hands: AttemptHands
    limits: Limits
    left: TimeLeft
    child: ChildProcess | None = None
    fault: Exception | None = None  # why it can't begin


class Executor:
    """Runs attempts: on the event loop, in threads, in child processes.

    Each has an asyncio task of its own, and the delivery's task supervises it. At its
    timeout it is asked to end: a coroutine is cancelled, a thread's context says so, a
    child process is killed. What has not ended 5 s later can't be ended: it is left
    behind, its attempt is over, and what it still returns or raises goes nowhere.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        threads: int,
        tools: Tools,
        resources: Resources,
        tasks: TaskStore,
        transactions: Transactions | None = None,
        processes: ChildProcesses | None = None,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        """Take the settings' `limits`; `random` draws from [0, 1) for the backoff."""
        self._limits = LimitsByHandler(limits)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="broker-worker-handler")
        self._tools = tools
        self._resources = resources
        self._tasks = tasks
        self._transactions = transactions
        self._processes = processes
        self._clock = clock
        self._random = random
        self._left: set[asyncio.Task[Outcome]] = set()
        self._running_loop: asyncio.AbstractEventLoop | None = None

    def execute(
        self,
        handler: Handler,
        arguments: Arguments,
        claim: Claim,
        *,
        stop: Stop,
        leave: Callable[[asyncio.Task[Outcome]], None],
    ) -> Awaitable[Outcome]:
        """Run one attempt, until it ends or `stop` is asked; `leave` is told of one that can't be ended.

        Raises nothing but `CancelledError`, when the caller was cancelled and the handler
        gave in or was left behind; the attempt then has no outcome. One that returns all the
        same has one, and one that raises `Retry` or `GiveUp`. Any other error after the attempt
        was asked to end is taken for the answer to that: what a cleanup raises is not charged.
        """
        hands = AttemptHands(claim, handler, stop=stop, tools=self._tools, loop=self._loop)
        left = TimeLeft(claim.time_left, since=self._clock.monotonic())
        if handler.needs_equipment:
            return self._execute_equipped(handler, arguments, claim, hands, left=left, leave=leave)
        return self._supervise(self._begin(handler, arguments, claim, hands, left=left), leave)

    async def _execute_equipped(
        self,
        handler: Handler,
        arguments: Arguments,
        claim: Claim,
        hands: AttemptHands,
        *,
        left: TimeLeft,
        leave: Callable[[asyncio.Task[Outcome]], None],
    ) -> Outcome:
        """Get what the attempt needs, run it, and give that back."""
        cancels_before = cancels()
        outcome: Outcome | None = None
        try:
            async with AsyncExitStack() as stack:
                child = await self._equip_unless_stopped(handler, claim, hands, left=left, stack=stack)
                run = self._begin(handler, arguments, claim, hands, left=left, child=child)
                outcome = await self._supervise(run, leave)
        except Exception as error:  # noqa: BLE001 - no child, or an adapter's fault: the attempt is over
            if outcome is None:  # the hooks are to see it, too
                if cancels() > cancels_before:
                    hands.stop.ask(StopReason.SHUTDOWN)
                run = self._begin(handler, arguments, claim, hands, left=left, fault=error)
                outcome = await self._supervise(run, leave)
        return outcome

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The one loop of this process: to ask for the running one is a call of the system each time."""
        if self._running_loop is None:
            self._running_loop = asyncio.get_running_loop()
        return self._running_loop

    def close(self) -> None:
        """Start no more threads and wait for none: their attempts are over."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def has_left_runs(self) -> bool:
        """Whether runs that could not be ended are still at it."""
        return bool(self._left)

    # --- before its time begins ----------------------------------------------------------

    async def _equip_unless_stopped(
        self, handler: Handler, claim: Claim, hands: AttemptHands, *, left: TimeLeft, stack: AsyncExitStack
    ) -> ChildProcess | None:
        """Get what the attempt needs; asked to end meanwhile, go on without it."""
        waiting = asyncio.timeout(None)

        def leave_off() -> None:
            if not waiting.expired():  # one that is may not be moved any more
                waiting.reschedule(self._loop.time())

        try:
            async with waiting:
                hands.stop.tell(leave_off)
                return await self._equip(handler, claim, hands, left=left, stack=stack)
        except TimeoutError:
            if not waiting.expired():
                raise
            return None
        finally:
            hands.stop.tell(lambda: None)

    async def _equip(
        self, handler: Handler, claim: Claim, hands: AttemptHands, *, left: TimeLeft, stack: AsyncExitStack
    ) -> ChildProcess | None:
        """Get what the attempt runs in or with, for as long as it takes."""
        if handler.way is PROCESS:
            assert self._processes is not None  # noqa: S101 - app.py gives them where a handler wants them
            return await stack.enter_async_context(self._processes.child(memory_limit=handler.memory_limit))
        if handler.session_parameter is None:
            return None
        assert self._transactions is not None  # noqa: S101 - likewise
        patience = Patience(self._clock, self._random)
        while not hands.is_cancelled:
            limit = self._limits_of(handler, left).timeout
            try:
                hands.transaction = await stack.enter_async_context(
                    self._transactions.open(claim, limit=limit)
                )
                break
            except (StoreUnavailableError, ConfigurationError):  # or a rotated URL that is no good
                await patience.pause()
        return None

    def _begin(
        self,
        handler: Handler,
        arguments: Arguments,
        claim: Claim,
        hands: AttemptHands,
        *,
        left: TimeLeft,
        child: ChildProcess | None = None,
        fault: Exception | None = None,
    ) -> Run:
        """Fix the attempt's time: it begins now."""
        limits = self._limits_of(handler, left)
        context = handler.context_type(
            message=claim.message,
            attempt=claim.attempt,
            max_attempts=limits.policy.max_attempts,
            may_be_repeat=claim.may_be_repeat,
            deadline=self._clock.now() + limits.timeout,
            saved_json=claim.saved,
            hands=hands,
        )
        return Run(handler, arguments, claim, context, hands, limits, left, child, fault)

    def _limits_of(self, handler: Handler, left: TimeLeft) -> Limits:
        """What counts for an attempt that begins now."""
        limits = self._limits.of(handler)
        time_left = left.at(self._clock.monotonic())
        if time_left is None or limits.timeout <= time_left:
            return limits
        return replace(limits, timeout=max(time_left, timedelta(0)))

    # --- from outside --------------------------------------------------------------------

    async def _supervise(self, run: Run, leave: Callable[[asyncio.Task[Outcome]], None]) -> Outcome:
        """Wait for the attempt, and ask it to end when its time is over or the worker's is."""
        name = f"{run.context.name} {run.context.task_id}"
        inside = self._loop.create_task(self._attempt(run), name=name)
        run.hands.stop.tell(inside.cancel)
        try:
            await _wait_for_end(self._loop, inside, run.limits.timeout)
            if not inside.done():
                run.hands.stop.ask(StopReason.TIMEOUT)
                await _wait_for_end(self._loop, inside, HARD_AFTER)
        except asyncio.CancelledError:
            run.hands.stop.ask(StopReason.SHUTDOWN)
            await _wait_for_end(self._loop, inside, SHUTDOWN_WAIT)
            if not inside.done():
                self._leave(inside)
                raise
        finally:
            if inside.done():
                run.hands.stop.forget()
        if not inside.done():
            self._leave(inside)
            leave(inside)
        outcome = self._outcome_of(run, inside)
        return outcome if isinstance(outcome, Succeeded) else self._tools.conceal(outcome)

    def _outcome_of(self, run: Run, inside: asyncio.Task[Outcome]) -> Outcome:
        if not inside.done():
            return self._ended_by(run, AttemptTimeoutError(run.limits.timeout))
        if inside.cancelled():  # before its first step, or by the handler itself in its last
            return self._ended_by(run, asyncio.CancelledError())
        return inside.result()

    def _leave(self, inside: asyncio.Task[Outcome]) -> None:
        self._left.add(inside)
        inside.add_done_callback(self._left.discard)

    # --- from inside ---------------------------------------------------------------------

    async def _attempt(self, run: Run) -> Outcome:
        """Run the handler within the hooks around it. Only the worker's own end is raised."""
        current_task.set(run.context)  # of this asyncio task alone
        try:
            outcome = await self._within_hooks(run) if run.handler.middleware else await self._handle(run)
        except BaseException as error:  # noqa: BLE001 - of a hook, which is the user's code as well
            return self._ended_by(run, error)
        if not isinstance(outcome, Outcome):
            wrong = TypeError(f"a middleware returned {type(outcome).__name__} and no outcome")
            return self._follow_up(run, wrong)
        return outcome

    def _within_hooks(self, run: Run) -> Awaitable[Outcome]:
        call: CallNext = partial(self._handle, run)
        for hook in reversed(run.handler.middleware):
            call = partial(hook, run.context, call)
        return call()

    async def _handle(self, run: Run) -> Outcome:
        try:
            if run.fault is not None:
                raise run.fault  # noqa: TRY301 - judged below, as what a handler raises
            if run.child is not None:
                ended = await run.child.run(
                    run.handler,
                    run.context,
                    limits=run.limits,
                    jitter=self._random(),
                    time_left=run.left.at(self._clock.monotonic()),
                )
                if run.hands.is_completed and isinstance(ended, Succeeded):
                    return await self._completed(run)
                return self._within_deadline(run, ended)
            outcome = self._conclude(run, await self._call(run))
            if run.hands.is_completed:
                return await self._completed(run)
            if run.hands.transaction is not None and isinstance(outcome, Succeeded):
                await run.hands.transaction.commit(outcome)
                outcome = replace(outcome, is_recorded=True)
        except (ClaimLostError, CommitUnknownError):
            return Released()  # what is true shows when this is recorded: the row is fenced
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises becomes an outcome
            return self._ended_by(run, error)
        return outcome

    async def _call(self, run: Run) -> object:
        handler = run.handler
        keywords = {**run.arguments}
        if handler.resource_by_parameter:
            keywords |= self._resources.arguments(handler)
        if handler.context_parameter is not None:
            keywords[handler.context_parameter] = run.context
        if handler.session_parameter is not None and run.hands.transaction is not None:
            keywords[handler.session_parameter] = run.hands.transaction.session
        function = self._resources.function(handler)
        if handler.way is THREAD:
            with run.hands.stop.unheard():  # a thread can't be cancelled: it asks its context
                returned = await self._run_in_thread(lambda: function(**keywords))
        else:
            returned = function(**keywords)
        if isinstance(returned, CoroutineType):
            return await returned
        # a plain function may return an awaitable: a coroutine function behind a decorator
        return await returned if inspect.isawaitable(returned) else returned

    async def _run_in_thread(self, call: Callable[[], object]) -> object:
        inside = contextvars.copy_context()
        future = self._loop.run_in_executor(self._threads, inside.run, _end_of, call)
        interruption: asyncio.CancelledError | None = None
        while not future.done():  # a thread can't be left while it holds its place: by a hook's timeout, say
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                interruption = error
        if interruption is not None:
            raise interruption
        ended = future.result()
        if isinstance(ended, _Raised):
            raise ended.error
        return ended

    # --- outcomes ------------------------------------------------------------------------

    def _conclude(self, run: Run, returned: object) -> Outcome:
        try:
            result = run.handler.serialise(returned, max_bytes=self._tools.max_result_bytes)
        except Refusal as refusal:
            return Dead(refusal.reason, refusal.failure)
        return Succeeded(result, tuple(run.hands.sent))

    async def _completed(self, run: Run) -> Outcome:
        """See whether the handler has committed its end itself, as it said that it would."""
        patience = Patience(self._clock, self._random)
        while True:
            try:
                is_completed = await self._tasks.is_completed(run.claim)
            except StoreUnavailableError:
                await patience.pause()
                continue
            if is_completed:
                return Succeeded(run.hands.completed)
            error = NotCompletedError("the handler asked for its completion and did not commit it")
            return self._follow_up(run, error)

    def _ended_by(self, run: Run, error: BaseException) -> Outcome:
        """Take an error after the attempt was asked to end for its end, unless the handler says what follows.

        What our own cancellation provokes can't be told from another error of the same moment.
        """
        error = tamed(error)
        if not says_what_follows(error):
            match run.hands.stop.reason:
                case StopReason.SHUTDOWN:
                    raise asyncio.CancelledError from error
                case StopReason.CANCELLED:
                    return Cancelled()
                case StopReason.TIMEOUT:
                    timeout = AttemptTimeoutError(run.limits.timeout)
                    timeout.__cause__ = None if isinstance(error, AttemptTimeoutError) else error
                    return self._follow_up(run, timeout)
                case None:
                    pass
        return self._follow_up(run, error)

    def _follow_up(self, run: Run, error: BaseException) -> Outcome:
        return follow_up(
            error,
            attempt=run.context.attempt,
            policy=run.limits.policy,
            jitter=self._random(),
            time_left=run.left.at(self._clock.monotonic()),
        )

    def _within_deadline(self, run: Run, outcome: Outcome) -> Outcome:
        """Judge by the time that is left now what a child judged by the time left at its start."""
        time_left = run.left.at(self._clock.monotonic())
        if isinstance(outcome, Postponed) and time_left is not None and outcome.delay >= time_left:
            return Dead(Reason.TIMEOUT, outcome.failure)
        return outcome


async def _wait_for_end(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[Outcome], limit: timedelta
) -> None:
    """Return when `task` has ended or the time is over: `asyncio.wait` for one, at a third of its cost."""
    woken = loop.create_future()

    def wake(_: object = None) -> None:
        if not woken.done():
            woken.set_result(None)

    timer = loop.call_later(limit.total_seconds(), wake)
    task.add_done_callback(wake)
    try:
        await woken
    finally:
        timer.cancel()
        task.remove_done_callback(wake)


@dataclass(frozen=True, slots=True)
class _Raised:
    """An error on its way out of a thread. As a value: a future can't carry a StopIteration."""

    error: BaseException


def _end_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - raised again on the event loop
        return _Raised(error)

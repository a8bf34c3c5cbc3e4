"""What a handler does through its context, done by the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from broker_worker.context import AnyHandler, Completion
from broker_worker.errors import BrokerWorkerError, ConfigurationError
from broker_worker.failure import Refusal
from broker_worker.handler import Handler
from broker_worker.outcome import Outcome
from broker_worker.ports import Checkpoints, HandlerTransaction, Progress
from broker_worker.registry import Registry
from broker_worker.sending import PayloadError, Sent, SentTask
from broker_worker.step import Claim
from broker_worker.worker.stop import Stop

SAVE_WAIT = 60.0  # seconds that a thread waits for its checkpoint


def _as_it_is(outcome: Outcome) -> Outcome:
    return outcome


@dataclass(frozen=True, slots=True)
class Tools:
    """What all attempts share."""

    registry: Registry
    checkpoints: Checkpoints
    progress: Progress
    completion: Callable[[Claim, str | None], Completion]
    max_result_bytes: int
    conceal: Callable[[Outcome], Outcome] = _as_it_is  # masks secrets in what is kept of a failure


class AttemptHands:
    """One attempt's; satisfies `context.Hands`."""

    __slots__ = (
        "_claim",
        "_handler",
        "_loop",
        "_tools",
        "completed",
        "is_completed",
        "sent",
        "stop",
        "transaction",
    )

    def __init__(
        self,
        claim: Claim,
        handler: Handler,
        *,
        stop: Stop,
        tools: Tools,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Take the event `loop` on which commits are awaited."""
        self.sent: list[Sent] = []
        self.completed: str | None = None  # the result, where the handler commits its own end
        self.is_completed = False
        self.transaction: HandlerTransaction | None = None
        self._claim = claim
        self._handler = handler
        self.stop = stop
        self._tools = tools
        self._loop = loop

    @property
    def is_cancelled(self) -> bool:
        return self.stop.reason is not None

    def report_progress(self, fraction: float, note: str) -> None:
        self._tools.progress.report(self._claim, fraction, note)

    async def save(self, state: str) -> None:
        size, limit = len(state.encode()), self._tools.max_result_bytes
        if size > limit:
            raise PayloadError(f"the checkpoint has {size} bytes, allowed are {limit}")
        if self.transaction is not None:  # commits with the success, after which nobody reads it
            await self.transaction.check()
        else:
            await self._tools.checkpoints.save(self._claim, state)

    def save_from_thread(self, state: str) -> None:
        asyncio.run_coroutine_threadsafe(self.save(state), self._loop).result(SAVE_WAIT)

    def send(self, sent: Sent) -> None:
        if self.is_completed:
            raise BrokerWorkerError(
                "after completion() nothing can be sent: it would not be part of that commit"
            )
        if isinstance(sent, SentTask):
            self._check(sent)
        self.sent.append(sent)

    def name_of(self, task: AnyHandler | str) -> str:
        if isinstance(task, str):
            return task
        name = self._tools.registry.name_of(task)
        if name is None:
            raise ConfigurationError(f"{getattr(task, '__qualname__', task)!r} is not registered as a task")
        return name

    def complete(self, result: object) -> Completion:
        try:
            return self.complete_json(self._handler.serialise(result, max_bytes=self._tools.max_result_bytes))
        except Refusal as refusal:
            raise BrokerWorkerError(refusal.failure.message) from refusal

    def complete_json(self, result: str | None) -> Completion:
        if self.transaction is not None:
            raise BrokerWorkerError("the task ends in the transaction of its handler: return the result")
        if self.sent:
            raise BrokerWorkerError(
                "what was sent can't be part of a completion: send nothing, or return instead"
            )
        self.completed = result
        self.is_completed = True
        return self._tools.completion(self._claim, self.completed)

    def _check(self, sent: SentTask) -> None:
        """Find a wrong payload where it was written, if the task's handler is known here."""
        handler = self._tools.registry.lookup(sent.message.task.name)
        if handler is not None:
            try:
                handler.bind(sent.message.body, sent.message.media_type)
            except Refusal as refusal:
                name = sent.message.task.name
                raise PayloadError(f"this is no payload of {name!r}: {refusal.failure.message}") from refusal

"""Hooks around every attempt of a registry's tasks, and the one that ships: reporting of errors."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from broker_worker.context import BaseContext
from broker_worker.outcome import Dead, Failure, Outcome, Postponed

CallNext = Callable[[], Awaitable[Outcome]]
Middleware = Callable[[BaseContext, CallNext], Awaitable[Outcome]]
"""Awaits `call_next` once and returns its outcome, or another; what it raises fails the attempt."""


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """A failed attempt, for a service that collects errors."""

    context: BaseContext
    outcome: Postponed | Dead
    error: BaseException | None  # None where the handler ran in a child process, or crashed

    @property
    def failure(self) -> Failure:
        """The error as it is kept: type, message, traceback."""
        return self.outcome.failure

    @property
    def is_final(self) -> bool:
        """Whether no attempt follows: the task is a dead letter now."""
        return isinstance(self.outcome, Dead)


def report_errors(report: Callable[[ErrorReport], object]) -> Middleware:
    """Make a middleware that calls `report`, plain or async, for each failed attempt.

    A report that fails itself is logged and changes nothing. With Sentry, for example:
    `registry.middleware(report_errors(lambda each: sentry_sdk.capture_exception(each.error)))`.
    """

    async def reporting(context: BaseContext, call_next: CallNext) -> Outcome:
        outcome = await call_next()
        if isinstance(outcome, Postponed | Dead):
            try:
                answer = report(ErrorReport(context, outcome, outcome.failure.error))
                if inspect.isawaitable(answer):
                    await answer
            except Exception:
                logging.getLogger(__name__).exception("an error could not be reported")
        return outcome

    return reporting

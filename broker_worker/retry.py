"""When a failed task is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from broker_worker.errors import BrokerWorkerError
from broker_worker.failure import describe
from broker_worker.outcome import Dead, GiveUp, Postponed, Reason, Retry

LONGEST_DELAY = timedelta(days=3650)  # a moment further away may not be a date any more


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff: `delay` doubles up to `max_delay`, drawn between half and whole."""

    max_attempts: int
    delay: timedelta
    max_delay: timedelta

    def allows(self, attempt: int) -> bool:
        """Say whether another attempt may follow `attempt` (1 is the first)."""
        return attempt < self.max_attempts

    def backoff(self, attempt: int, *, jitter: float) -> timedelta:
        """The wait after `attempt`; `jitter` is drawn by the caller from [0, 1).

        Equal arguments give equal answers; over the draws the mean is three
        quarters of the ceiling.
        """
        factor = 1 << min(attempt - 1, 60)
        # the cap is divided, because the delay multiplied overflows a timedelta before it is capped
        is_capped = self.delay > self.max_delay // factor
        ceiling = self.max_delay if is_capped else self.delay * factor
        return ceiling * (0.5 + jitter / 2)


class AttemptTimeoutError(BrokerWorkerError):
    """A handler ran longer than it may; its cause shows where it was."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(f"the attempt took longer than {timeout.total_seconds():g} s")
        self.timeout = timeout


def follow_up(error: BaseException, *, attempt: int, policy: RetryPolicy, jitter: float) -> Postponed | Dead:
    """Say what follows when `error` ended `attempt` (1 is the first).

    A handler's `Retry` and `GiveUp` count also as the only member of an
    exception group, because that is how a task group of its own passes them on.
    """
    failure = describe(error)
    error = _only_member(error)
    if isinstance(error, GiveUp):
        return Dead(Reason.GAVE_UP, failure)
    is_timeout = isinstance(error, AttemptTimeoutError)
    if not policy.allows(attempt):
        return Dead(Reason.TIMEOUT if is_timeout else Reason.ATTEMPTS_EXHAUSTED, failure)
    if isinstance(error, Retry) and error.delay is not None:
        return Postponed(min(error.delay, LONGEST_DELAY), failure)
    delay = policy.backoff(attempt, jitter=jitter)
    return Postponed(delay, failure, Reason.TIMEOUT if is_timeout else None)


def _only_member(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

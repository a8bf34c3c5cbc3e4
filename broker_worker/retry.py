"""When a failed task is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from broker_worker.errors import BrokerWorkerError, ChildCrashedError, ConfigurationError
from broker_worker.failure import describe, tamed
from broker_worker.outcome import Dead, GiveUp, Postponed, Reason, Retry

LONGEST_DELAY = timedelta(days=3650)  # a moment further away may not be a date any more
MOST_ATTEMPTS = 1000
JITTER = 0.5
ErrorTypes = tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """Where a task, or one type of its errors, differs from the retries of the settings.

    Durations are timedeltas or seconds; what is `None` stays as it was.
    """

    max_attempts: int | None = None
    delay: timedelta | float | None = None  # before the second attempt; doubles with each
    max_delay: timedelta | float | None = None  # where the doubling ends
    jitter: float | None = None  # the part of each wait that is drawn, 0 to 1

    def __post_init__(self) -> None:
        attempts, jitter = self.max_attempts, self.jitter
        if attempts is not None and not _is_number(attempts, int, 1, MOST_ATTEMPTS):
            raise ConfigurationError(f"max_attempts is {attempts!r}, allowed are 1 to {MOST_ATTEMPTS}")
        if jitter is not None and not _is_number(jitter, float, 0, 1):
            raise ConfigurationError(f"jitter is {jitter!r}, allowed is 0 to 1")
        delay = as_duration(self.delay, name="delay")
        longest = as_duration(self.max_delay, name="max_delay")
        for name, wait in (("delay", delay), ("max_delay", longest)):
            if wait is not None and not timedelta(0) <= wait <= LONGEST_DELAY:
                limit = f"negative, or more than {LONGEST_DELAY.days} days"
                raise ConfigurationError(f"{name} must not be {limit}")
        if delay is not None and longest is not None and delay > longest:
            raise ConfigurationError("delay must not be more than max_delay")

    def over(self, policy: RetryPolicy) -> RetryPolicy:
        """Put this over another policy; one of the two delays alone moves the other where they contradict."""
        given = as_duration(self.delay, name="delay")
        given_longest = as_duration(self.max_delay, name="max_delay")
        delay = given if given is not None else policy.delay
        longest = given_longest if given_longest is not None else max(delay, policy.max_delay)
        return replace(
            policy,
            max_attempts=self.max_attempts or policy.max_attempts,
            delay=min(delay, longest),
            max_delay=longest,
            jitter=policy.jitter if self.jitter is None else self.jitter,
        )


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff: `delay` doubles up to `max_delay`; the part `jitter` of each wait is drawn."""

    max_attempts: int
    delay: timedelta
    max_delay: timedelta
    jitter: float = JITTER
    retry_on: ErrorTypes = ()  # with any, other errors are final
    give_up_on: ErrorTypes = ()
    policy_by_error: Mapping[type[BaseException], Policy] = field(default_factory=dict)

    @property
    def most_attempts(self) -> int:
        """The attempts that there can be, with errors whose policy allows more."""
        if not self.policy_by_error:
            return self.max_attempts
        return max(self.max_attempts, *(each.max_attempts or 0 for each in self.policy_by_error.values()))

    def allows(self, attempt: int) -> bool:
        """Say whether another attempt may follow `attempt` (1 is the first)."""
        return attempt < self.max_attempts

    def backoff(self, attempt: int, *, jitter: float) -> timedelta:
        """The wait after `attempt`; `jitter` is drawn by the caller from [0, 1).

        Equal arguments give equal answers.
        """
        factor = 1 << min(attempt - 1, 60)
        # the cap is divided, because the delay multiplied overflows a timedelta before it is capped
        is_capped = self.delay > self.max_delay // factor
        ceiling = self.max_delay if is_capped else self.delay * factor
        return ceiling * (1 - self.jitter + self.jitter * jitter)

    def answer_to(self, error: BaseException) -> RetryPolicy | None:
        """Find the policy for a handler's error; nothing where it is final.

        The most specific class that is named anywhere decides.
        """
        for kind in type(error).__mro__:
            if kind in self.give_up_on:
                return None
            if kind in self.policy_by_error:
                return self.policy_by_error[kind].over(self)
            if kind in self.retry_on:
                return self
        return None if self.retry_on else self


class AttemptTimeoutError(BrokerWorkerError):
    """A handler ran longer than it may; its cause shows where it was."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(f"the attempt took longer than {timeout.total_seconds():g} s")
        self.timeout = timeout


def follow_up(
    error: BaseException,
    *,
    attempt: int,
    policy: RetryPolicy,
    jitter: float,
    time_left: timedelta | None = None,
) -> Postponed | Dead:
    """Say what follows when `error` ended `attempt` (1 is the first).

    A handler's `Retry` and `GiveUp` count also as the only member of an exception group,
    because that is how a task group of its own passes them on. `time_left` is until the
    task's deadline: an attempt that could not begin before it is not waited for.
    """
    failure = describe(tamed(error))
    error = _only_member(tamed(error))
    code = _code(error)
    answer = policy if code is not None or isinstance(error, Retry) else policy.answer_to(error)
    if isinstance(error, GiveUp) or answer is None:
        return Dead(Reason.GAVE_UP, failure)
    if not answer.allows(attempt):
        return Dead(code or Reason.ATTEMPTS_EXHAUSTED, failure)
    delay = answer.backoff(attempt, jitter=jitter)
    if isinstance(error, Retry) and error.delay is not None:
        delay = min(error.delay, LONGEST_DELAY)
    if time_left is not None and delay >= time_left:
        return Dead(Reason.TIMEOUT, failure)
    return Postponed(delay, failure, code)


def says_what_follows(error: BaseException) -> bool:
    """Say whether a handler asks by `error` itself for what is to follow: `Retry` or `GiveUp`."""
    return isinstance(_only_member(error), Retry | GiveUp)


def as_duration(value: timedelta | float | None, *, name: str) -> timedelta | None:
    """Read a timedelta, or seconds.

    Raises:
        ConfigurationError: it is neither; the message says `name`.
    """
    try:
        return value if value is None or isinstance(value, timedelta) else timedelta(seconds=value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{name} is {value!r}, neither a timedelta nor seconds") from error


def _is_number(value: object, kind: type[float], least: float, most: float) -> bool:
    """Whether a number that somebody wrote is one, and within its bounds."""
    return isinstance(value, int | kind) and least <= value <= most


def _code(error: BaseException) -> Reason | None:
    """The reason of what the worker itself saw; a handler's own errors have none."""
    if isinstance(error, AttemptTimeoutError):
        return Reason.TIMEOUT
    return Reason.CRASHED if isinstance(error, ChildCrashedError) else None


def _only_member(error: BaseException) -> BaseException:
    try:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = tamed(error.exceptions[0])
    except BaseException:  # noqa: BLE001 - members of a group are the user's code as well
        return error
    return error

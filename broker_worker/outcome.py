"""What an attempt leads to, as values; and the two errors by which a handler says so itself."""

from __future__ import annotations

from dataclasses import field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from broker_worker.values import dataclass

if TYPE_CHECKING:
    from broker_worker.sending import Sent  # whose messages know the reasons from here


class Reason(StrEnum):
    """Why a task is dead, or why an attempt of it failed."""

    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    UNKNOWN_TASK = "unknown_task"
    INVALID_PAYLOAD = "invalid_payload"
    CONFLICT = "conflict"
    BAD_SIGNATURE = "bad_signature"
    UNROUTABLE = "unroutable"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    GAVE_UP = "gave_up"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"
    DELIVERY_LIMIT = "delivery_limit"
    RESULT_TOO_LARGE = "result_too_large"
    RESULT_UNSERIALISABLE = "result_unserialisable"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as people see it later: no input values, sizes bounded where it was made."""

    error_type: str
    message: str = ""
    traceback: str | None = None
    fingerprint: str | None = None  # equal for errors of the same type from the same place
    error: BaseException | None = field(default=None, compare=False, repr=False)  # while it is at hand


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned. `result` is its JSON, or nothing for `None`; `sent` leaves with it."""

    result: str | None = None
    sent: tuple[Sent, ...] = ()
    is_recorded: bool = field(default=False, compare=False)  # committed with the handler's transaction


@dataclass(frozen=True, slots=True)
class Postponed:
    """The attempt failed and another follows after `delay`."""

    delay: timedelta
    failure: Failure
    reason: Reason | None = None  # set where there is a code for it: timeout, crashed

    @property
    def kept_reason(self) -> Reason | None:
        """What the row keeps. A child's crash hurt nobody else: a worker's makes the next one run alone."""
        return None if self.reason is Reason.CRASHED else self.reason

    @property
    def recorded_as(self) -> str:
        """What the record of the attempt says."""
        return str(self.reason or "failed")


@dataclass(frozen=True, slots=True)
class Dead:
    """No attempt follows."""

    reason: Reason
    failure: Failure


@dataclass(frozen=True, slots=True)
class Cancelled:
    """An operator asked for the end."""


@dataclass(frozen=True, slots=True)
class Released:
    """We stopped the attempt for a reason of our own: not charged, run again at once."""


Outcome = Succeeded | Postponed | Dead | Cancelled | Released


class Retry(Exception):  # noqa: N818 - a request, not an error
    """Raised by a handler: try again, after `delay` where given, else by the policy."""

    def __init__(self, message: str = "", *, delay: timedelta | float | None = None) -> None:
        """Ask for another attempt; `delay` is a timedelta or seconds, not negative."""
        super().__init__(message)
        self.delay = delay if delay is None or isinstance(delay, timedelta) else timedelta(seconds=delay)
        if self.delay is not None and self.delay < timedelta(0):
            raise ValueError("the delay of a retry is not negative")


class GiveUp(Exception):  # noqa: N818 - a decision, not an error
    """Raised by a handler: this can't be done; the task becomes a dead letter."""

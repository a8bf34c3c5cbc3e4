"""A handler: a user's function under a task name, with what it takes, returns and may cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from pydantic import TypeAdapter

from broker_worker.errors import ConfigurationError
from broker_worker.failure import Refusal, type_name
from broker_worker.message import is_json
from broker_worker.outcome import Reason
from broker_worker.payload import Arguments, Decoder, Function, Payload, check_json, refusal
from broker_worker.retry import LONGEST_DELAY, RetryPolicy

_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an attempt may take, and what follows when it fails."""

    policy: RetryPolicy
    timeout: timedelta


@dataclass(frozen=True, slots=True)
class Overrides:
    """Where a handler differs from the settings."""

    max_attempts: int | None = None
    retry_delay: timedelta | None = None
    retry_max_delay: timedelta | None = None
    timeout: timedelta | None = None

    def __post_init__(self) -> None:
        if self.max_attempts is not None and not 1 <= self.max_attempts <= 1000:  # noqa: PLR2004 - as the setting
            raise ConfigurationError(f"max_attempts is {self.max_attempts}, allowed are 1 to 1000")
        if self.timeout is not None and not timedelta(0) < self.timeout <= LONGEST_DELAY:
            raise ConfigurationError(f"timeout must be more than 0 and at most {LONGEST_DELAY.days} days")
        delays = [delay for delay in (self.retry_delay, self.retry_max_delay) if delay is not None]
        if any(not timedelta(0) <= delay <= LONGEST_DELAY for delay in delays):
            limit = f"negative, or more than {LONGEST_DELAY.days} days"
            raise ConfigurationError(f"retry_delay and retry_max_delay must not be {limit}")
        if delays != sorted(delays):
            raise ConfigurationError("retry_delay must not be more than retry_max_delay")

    def over(self, limits: Limits) -> Limits:
        """Put these over the settings' limits.

        One of the two delays alone moves the other where they would contradict.
        """
        delay = self.retry_delay if self.retry_delay is not None else limits.policy.delay
        longest = self.retry_max_delay if self.retry_max_delay is not None else limits.policy.max_delay
        if self.retry_max_delay is None:
            longest = max(delay, longest)
        policy = RetryPolicy(self.max_attempts or limits.policy.max_attempts, min(delay, longest), longest)
        return Limits(policy, self.timeout or limits.timeout)


@dataclass(frozen=True, slots=True)
class Handler:
    """One registered function."""

    name: str
    function: Function
    is_async: bool
    payload: Payload = field(repr=False)
    result: TypeAdapter[object] = field(repr=False)
    context_parameter: str | None = None
    overrides: Overrides = Overrides()
    default_for: tuple[str, ...] = ()  # queues in which a message without a type is this task
    decoder_by_media_type: Mapping[str, Decoder] = field(default_factory=dict, repr=False)

    def bind(self, body: bytes, media_type: str) -> Arguments:
        """Turn a body into keyword arguments (all but the context).

        Raises:
            Refusal: malformed, or invalid_payload; its message never holds input values.
        """
        if is_json(media_type):
            return self.payload.read_json(body)
        decoder = self.decoder_by_media_type.get(media_type)
        if decoder is None:
            detail = f"no decoder is registered for the content type {media_type[:100]!r}"
            raise refusal(Reason.MALFORMED, "ContractError", detail)
        try:
            value = decoder(body)
        except BaseException as error:  # noqa: BLE001 - a decoder is the user's code
            detail = f"the decoder for {media_type[:100]!r} raised this"
            raise refusal(Reason.MALFORMED, type_name(error), detail) from None
        return self.payload.read_value(value)

    def limits(self, default: Limits) -> Limits:
        """What counts for this handler where the settings say `default`."""
        return self.overrides.over(default)

    def payload_schema(self) -> dict[str, object]:
        """The JSON Schema of a body that `bind` takes."""
        return self.payload.schema()

    def serialise(self, value: object, *, max_bytes: int) -> str | None:
        """Turn a result into JSON text that Postgres can hold; nothing for `None`.

        Raises:
            Refusal: result_unserialisable or result_too_large (more than `max_bytes` of UTF-8).
        """
        if value is None:
            return None
        try:
            result = self.result.dump_json(value, warnings=False)
        except BaseException as error:  # noqa: BLE001 - a serialiser is the user's code
            detail = f"a result of type {type(value).__name__} can't become JSON"
            raise refusal(Reason.RESULT_UNSERIALISABLE, type_name(error), detail) from None
        if len(result) > max_bytes:
            detail = f"the result has {len(result)} bytes, allowed are {max_bytes}"
            raise refusal(Reason.RESULT_TOO_LARGE, "ValueError", detail)
        fault = _fault(result)
        if fault is not None:
            raise refusal(Reason.RESULT_UNSERIALISABLE, "ValueError", fault)
        return result.decode()


def _fault(result: bytes) -> str | None:
    """Say what a reader of this JSON would trip over."""
    try:
        check_json(result)
    except Refusal:  # whose message speaks of a body
        return "the result holds NaN, Infinity, or something too deep or too long for JSON"
    if _ESCAPED_NUL.search(result):
        return "the result holds the character NUL, which Postgres refuses"
    return None

"""A handler: a user's function or class under a task name, with what it takes, returns and may cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum

from pydantic import TypeAdapter

from broker_worker.context import BaseContext, Context
from broker_worker.errors import ConfigurationError
from broker_worker.failure import Refusal, type_name
from broker_worker.message import is_json
from broker_worker.middleware import Middleware
from broker_worker.outcome import Reason
from broker_worker.payload import Arguments, Decoder, Function, Payload, check_json, refusal
from broker_worker.retry import LONGEST_DELAY, ErrorTypes, Policy, RetryPolicy

SHORT = 100  # bytes of JSON, which can be neither deep nor hold a number too long
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Way(StrEnum):
    """Where a handler runs."""

    LOOP = "async"  # on the event loop
    THREAD = "thread"
    PROCESS = "process"


# Each look at a member of an enumeration calls a function in Python 3.11: 0.4 µs, on every message.
THREAD, PROCESS = Way.THREAD, Way.PROCESS


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an attempt may take, all of them together, and what follows when one fails."""

    policy: RetryPolicy
    timeout: timedelta
    deadline: timedelta | None = None  # from the first start on


def _check_kinds(name: str, kinds: ErrorTypes, *, not_in: ErrorTypes = ()) -> None:
    for kind in kinds:
        if not _is_error_type(kind):
            raise ConfigurationError(f"{name}: {kind!r} is not an exception class")
        if kind in not_in:
            raise ConfigurationError(f"{kind.__name__} is both in {name} and in give_up_on")


def _is_error_type(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


@dataclass(frozen=True, slots=True)
class Overrides:
    """Where a handler differs from the settings."""

    policy: Policy = field(default_factory=Policy)
    timeout: timedelta | None = None
    deadline: timedelta | None = None
    retry_on: ErrorTypes = ()
    give_up_on: ErrorTypes = ()
    policy_by_error: Mapping[type[BaseException], Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, limit in (("timeout", self.timeout), ("deadline", self.deadline)):
            if limit is not None and not timedelta(0) < limit <= LONGEST_DELAY:
                raise ConfigurationError(f"{name} must be more than 0 and at most {LONGEST_DELAY.days} days")
        _check_kinds("give_up_on", self.give_up_on)
        _check_kinds("retry_on", self.retry_on, not_in=self.give_up_on)
        _check_kinds("policies", tuple(self.policy_by_error), not_in=self.give_up_on)
        for kind, policy in self.policy_by_error.items():
            if not isinstance(policy, Policy):
                raise ConfigurationError(f"policies: that of {kind.__name__} is not a Policy")

    def over(self, limits: Limits) -> Limits:
        """Put these over the settings' limits."""
        policy = replace(
            self.policy.over(limits.policy),
            retry_on=self.retry_on,
            give_up_on=self.give_up_on,
            policy_by_error=self.policy_by_error,
        )
        return Limits(policy, self.timeout or limits.timeout, self.deadline or limits.deadline)


class LimitsByHandler:
    """What counts for each handler, worked out once: every delivery asks."""

    def __init__(self, default: Limits) -> None:
        """Take what the settings say."""
        self._default = default
        self._known: dict[str, tuple[Handler, Limits]] = {}

    def of(self, handler: Handler) -> Limits:
        """Put a handler's own limits over the settings'."""
        known = self._known.get(handler.name)
        if known is not None and known[0] is handler:
            return known[1]
        limits = handler.limits(self._default)
        self._known[handler.name] = handler, limits
        return limits


@dataclass(frozen=True, slots=True)
class Handler:
    """One registered function, or class with a method `run`."""

    name: str
    target: Function  # as it was registered
    way: Way
    payload: Payload = field(repr=False)
    result: TypeAdapter[object] = field(repr=False)
    context_parameter: str | None = None
    context_type: type[BaseContext] = Context
    session_parameter: str | None = None
    resource_by_parameter: Mapping[str, type] = field(default_factory=dict)
    resource_by_field: Mapping[str, type] | None = None  # of a class's constructor; None for a function
    overrides: Overrides = Overrides()
    memory_limit: int | None = None  # bytes, of the child process
    default_for: tuple[str, ...] = ()  # queues in which a message without a type is this task
    decoder_by_media_type: Mapping[str, Decoder] = field(default_factory=dict, repr=False)
    middleware: Sequence[Middleware] = field(default=(), repr=False)

    @property
    def is_class(self) -> bool:
        """Whether it is a class, made once in each process that runs it."""
        return self.resource_by_field is not None

    @property
    def needs_equipment(self) -> bool:
        """Whether an attempt has to wait for something of its own: a child process or a session."""
        return self.way is PROCESS or self.session_parameter is not None

    @property
    def resource_types(self) -> frozenset[type]:
        """What it asks for by parameters of its own or of its constructor."""
        return frozenset({*self.resource_by_parameter.values(), *(self.resource_by_field or {}).values()})

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
        fault = None if _is_harmless(result) else _fault(result)
        if fault is not None:
            raise refusal(Reason.RESULT_UNSERIALISABLE, "ValueError", fault)
        return result.decode()


def _is_harmless(result: bytes) -> bool:
    """Whether JSON is so short and plain that there is nothing in it to trip over."""
    return len(result) <= SHORT and b"N" not in result and b"Infinity" not in result and b"\\u" not in result


def _fault(result: bytes) -> str | None:
    """Say what a reader of this JSON would trip over."""
    try:
        check_json(result)
    except Refusal:  # whose message speaks of a body
        return "the result holds NaN, Infinity, or something too deep or too long for JSON"
    if _ESCAPED_NUL.search(result):
        return "the result holds the character NUL, which Postgres refuses"
    return None

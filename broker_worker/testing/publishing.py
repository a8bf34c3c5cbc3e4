"""Messages as any publisher writes them, for the harness."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TypedDict

from broker_worker.context import AnyHandler
from broker_worker.errors import ConfigurationError
from broker_worker.failure import Refusal
from broker_worker.handler import Handler
from broker_worker.message import DELIVER_AT, NOT_AFTER, Properties, media_type
from broker_worker.payload import function_name
from broker_worker.registry import Registry
from broker_worker.sending import PayloadError, write_payload

Duration = timedelta | float  # or seconds


class PublishOptions(TypedDict, total=False):
    """How a task is published; as in `client.Client.publish`, and what only AMQP programs say."""

    id: str
    queue: str
    delay: Duration
    not_after: datetime | Duration
    headers: Mapping[str, object]
    correlation_id: str | None
    reply_to: str | None
    content_type: str | None
    times: int


def find_handler(registry: Registry, task: AnyHandler | str) -> tuple[str, Handler | None]:
    """Find the name of a task, and its handler where the registry has one.

    Raises:
        ConfigurationError: a function or class that is not registered.
    """
    if isinstance(task, str):
        return task, registry.lookup(task)
    name = registry.name_of(task)
    if name is None:
        raise ConfigurationError(f"{function_name(task)} is not a task of the harness's registry")
    return name, registry.lookup(name)


def write_body(payload: object, content_type: str | None, check: Handler | None) -> bytes:
    """Make a body: bytes as they are where a content type says what they are, else JSON.

    Raises:
        PayloadError: it can't become JSON, or is not what the handler `check` takes.
    """
    is_raw = content_type is not None and isinstance(payload, bytes)
    body = (
        payload
        if is_raw and isinstance(payload, bytes)
        else write_payload({} if payload is None else payload)
    )
    if check is not None:
        try:
            check.bind(body, media_type(content_type))
        except Refusal as refusal:
            raise PayloadError(f"not a payload of {check.name!r}: {refusal.failure.message}") from None
    return body


def write_properties(name: str, task_id: str, now: datetime, options: PublishOptions) -> Properties:
    """Write the properties by the message contract."""
    headers = dict(options.get("headers", {}))
    if delay := as_timedelta(options.get("delay", 0)):
        headers[DELIVER_AT] = (now + delay).isoformat()
    if (not_after := options.get("not_after")) is not None:
        moment = not_after if isinstance(not_after, datetime) else now + as_timedelta(not_after)
        headers[NOT_AFTER] = moment.isoformat()
    return Properties(
        type=name,
        message_id=task_id,
        content_type=options.get("content_type") or "application/json",
        correlation_id=options.get("correlation_id"),
        reply_to=options.get("reply_to"),
        timestamp=now,
        app_id="harness",
        headers=headers,
    )


def as_timedelta(duration: Duration) -> timedelta:
    """Read a timedelta, or seconds; not negative."""
    found = duration if isinstance(duration, timedelta) else timedelta(seconds=duration)
    if found < timedelta(0):
        raise ValueError("a duration is not negative")
    return found

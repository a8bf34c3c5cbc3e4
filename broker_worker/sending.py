"""What a handler sends: it leaves with the outcome of the attempt, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from pydantic_core import PydanticSerializationError, to_json

from broker_worker.errors import BrokerWorkerError
from broker_worker.failure import Refusal
from broker_worker.message import Message
from broker_worker.payload import check_json


class PayloadError(BrokerWorkerError):
    """A payload that can't become JSON, or is not what its handler takes."""


@dataclass(frozen=True, slots=True)
class SentTask:
    """A task for a queue of this service; the same identity again is no new task."""

    message: Message
    delay: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class SentEvent:
    """A message to an exchange of the author's: who gets it is the broker's business."""

    exchange: str
    routing_key: str
    body: bytes = field(repr=False)


Sent = SentTask | SentEvent


def write_payload(payload: object) -> bytes:
    """Make the JSON body of a message from anything that pydantic can serialise.

    Raises:
        PayloadError: it can't.
    """
    try:
        body = to_json(payload, inf_nan_mode="constants")
        check_json(body)
    except PydanticSerializationError as error:
        raise PayloadError(f"a payload of type {type(payload).__name__} can't become JSON") from error
    except Refusal as error:
        raise PayloadError("a payload holds NaN, Infinity, or something too deep for JSON") from error
    return body

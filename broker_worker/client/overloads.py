"""What type checkers know of a publish: the payload has to be what the handler takes.

mypy and pyright find a wrong model for a function or class whose first parameter it is, but for a
function's context. They can't see the types inside a mapping of members, nor tell a payload's
parameter from a resource that comes first: those are found before the message leaves, by the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Concatenate, Protocol, TypedDict, TypeVar

from pydantic import BaseModel

from broker_worker.context import Context, SyncContext
from broker_worker.registry import Registry
from broker_worker.secret import Secret


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Model = TypeVar("Model", bound=BaseModel | _Dataclass | Mapping[str, object])  # the last: a TypedDict
P_contra = TypeVar("P_contra", contravariant=True)


class HasRun(Protocol[P_contra]):
    """A class handler that takes one model."""

    def run(self, payload: P_contra, /, *args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - what the worker fills
        """Run one attempt."""


Takes = Callable[Concatenate[Model, ...], object]  # a function whose first parameter is the payload
TakesSecond = (  # a function whose first is the context; apart, for pyright can't tell all three in one union
    Callable[Concatenate[Context, Model, ...], object]
    | Callable[Concatenate[SyncContext, Model, ...], object]
)
TakesNothing = Callable[[], object] | Callable[[Context], object] | Callable[[SyncContext], object]
TakesMembers = Callable[..., object]  # or anything else: the members by name


class ClientOptions(TypedDict, total=False):
    """What a client is made with."""

    amqp_url: str | Secret | None
    database_url: str | Secret | None
    direct_url: str | Secret | None
    prefix: str
    schema: str
    registry: Registry | None
    queue: str | None
    publish_timeout: timedelta | float
    signing_keys: str | Secret | None


class PublishOptions(TypedDict, total=False):
    """What a publisher may say of a task beside its payload."""

    id: str | None
    queue: str | None
    delay: timedelta | float
    not_after: datetime | timedelta | float | None
    headers: Mapping[str, object] | None
    correlation_id: str | None

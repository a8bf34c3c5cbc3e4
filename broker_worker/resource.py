"""Things that handlers share: opened once per process, and handed over by their type."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import get_args, get_origin

from broker_worker.errors import ConfigurationError
from broker_worker.payload import Function, function_name, one_line

ResourceFactory = Callable[..., AsyncIterator[object]] | Callable[..., AbstractAsyncContextManager[object]]


@dataclass(slots=True)
class Resource:
    """One of them: its type, how it is opened, and the resources that this needs."""

    kind: type
    factory: Function
    open: Callable[..., AbstractAsyncContextManager[object]]
    needs: dict[str, type] = field(default_factory=dict)  # by parameter


def read_resource(factory: Function) -> Resource:
    """Read what a factory makes from its return annotation.

    Raises:
        ConfigurationError: one line that names the factory.
    """
    where = function_name(factory)
    generator = inspect.unwrap(factory)
    if not inspect.isasyncgenfunction(generator):
        raise ConfigurationError(f"{where}: a resource is an async generator function that yields it once")
    is_bare = inspect.isasyncgenfunction(factory)
    opens = contextlib.asynccontextmanager(generator) if is_bare else factory
    try:
        hint = typing.get_type_hints(generator).get("return")
    except Exception as error:
        raise ConfigurationError(f"{where}: its annotations can't be resolved: {one_line(error)}") from error
    kind = get_args(hint)[0] if get_origin(hint) in (AsyncIterator, AsyncGenerator) else None
    made = get_origin(kind) or kind
    if not isinstance(made, type):
        raise ConfigurationError(f"{where}: its return annotation must be AsyncIterator[<a class>]")
    return Resource(made, generator, typing.cast("Callable[..., AbstractAsyncContextManager[object]]", opens))

"""Handlers by task name: the decorator that registers them, and the modules that hold them."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from broker_worker.errors import ConfigurationError
from broker_worker.handler import Handler, Overrides
from broker_worker.message import MAX_NAME_LENGTH, is_json, media_type
from broker_worker.payload import Decoder, Function, function_name, one_line, read_signature

F = TypeVar("F", bound=Function)
D = TypeVar("D", bound=Decoder)


@dataclass(frozen=True, slots=True)
class _Registration:
    """A decorated function, unread: its annotations may name what its module defines further down."""

    name: str
    function: Function
    overrides: Overrides
    default_for: tuple[str, ...]


class Registry:
    """The handlers of a program."""

    def __init__(self) -> None:
        self._registration_by_name: dict[str, _Registration] = {}
        self._handler_by_name: dict[str, Handler] = {}
        self._name_by_queue: dict[str, str] = {}
        self._decoder_by_media_type: dict[str, Decoder] = {}

    def task(
        self,
        name: str,
        *,
        max_attempts: int | None = None,
        retry_delay: timedelta | float | None = None,
        retry_max_delay: timedelta | float | None = None,
        timeout: timedelta | float | None = None,
        default_for: str | Sequence[str] = (),
    ) -> Callable[[F], F]:
        """Register the decorated function for tasks called `name` and return it unchanged.

        Durations are timedeltas or seconds; what is not given follows the settings.
        In the queues of `default_for`, a message without a type is this task.
        """

        def register(function: F) -> F:
            where = _place(function)
            try:
                _check_name(name)
                overrides = Overrides(
                    max_attempts, _duration(retry_delay), _duration(retry_max_delay), _duration(timeout)
                )
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}: {error}") from error
            queues = (default_for,) if isinstance(default_for, str) else tuple(default_for)
            self._add(_Registration(name, function, overrides, queues))
            return function

        return register

    def decoder(self, content_type: str) -> Callable[[D], D]:
        """Register the decorated function, bytes to object, for bodies of another media type than JSON."""
        media = media_type(content_type)
        if is_json(media):
            raise ConfigurationError(f"a decoder for {media!r}: JSON is built in")

        def register(decoder: D) -> D:
            self._add_decoder(media, decoder)
            return decoder

        return register

    def lookup(self, name: str) -> Handler | None:
        """Find the handler of a task.

        Raises:
            ConfigurationError: its signature can't be used (found at the first look).
        """
        registration = self._registration_by_name.get(name)
        if registration is None:
            return None
        if name not in self._handler_by_name:
            self._handler_by_name[name] = self._build(registration)
        return self._handler_by_name[name]

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """All of them, by name; raises like `lookup`."""
        found = (self.lookup(name) for name in sorted(self._registration_by_name))
        return tuple(handler for handler in found if handler is not None)

    def default_name(self, queue: str) -> str | None:
        """The task of a message without a type in `queue`."""
        return self._name_by_queue.get(queue)

    def include(self, other: Registry) -> None:
        """Take over what `other` holds; a name that both have is a `ConfigurationError`."""
        for registration in other._registration_by_name.values():
            self._add(registration)
        for media, decoder in other._decoder_by_media_type.items():
            self._add_decoder(media, decoder)

    def _add(self, registration: _Registration) -> None:
        where = function_name(registration.function)
        known = self._registration_by_name.get(registration.name)
        if known is not None:
            by = function_name(known.function)
            raise ConfigurationError(
                f"{where}: the task {registration.name!r} is registered already, by {by}"
            )
        for queue in registration.default_for:
            taken = self._name_by_queue.get(queue)
            if taken is not None:
                raise ConfigurationError(
                    f"{where}: the default of queue {queue!r} is the task {taken!r} already"
                )
        self._registration_by_name[registration.name] = registration
        self._name_by_queue |= dict.fromkeys(registration.default_for, registration.name)

    def _add_decoder(self, media: str, decoder: Decoder) -> None:
        if media in self._decoder_by_media_type:
            raise ConfigurationError(f"{function_name(decoder)}: there is a decoder for {media!r} already")
        self._decoder_by_media_type[media] = decoder

    def _build(self, registration: _Registration) -> Handler:
        payload, context_parameter, result = read_signature(registration.function)
        return Handler(
            name=registration.name,
            function=registration.function,
            is_async=inspect.iscoroutinefunction(registration.function),
            payload=payload,
            result=result,
            context_parameter=context_parameter,
            overrides=registration.overrides,
            default_for=registration.default_for,
            decoder_by_media_type=self._decoder_by_media_type,
        )


def load_registries(names: Iterable[str]) -> Registry:
    """Import `module` or `module:attribute`, each with at least one `Registry`, and merge them.

    The current directory is importable. Every handler is built, so that a fault shows now.

    Raises:
        ConfigurationError: one line about the first thing that is wrong.
    """
    directory = os.getcwd()  # noqa: PTH109 - sys.path wants text
    if directory not in sys.path:
        sys.path.insert(0, directory)
    found: list[Registry] = []
    for name in names:
        found += [registry for registry in _registries(name) if not any(registry is known for known in found)]
    merged = Registry()
    for registry in found:
        merged.include(registry)
    if not merged.handlers:
        raise ConfigurationError(f"no handler is registered in {', '.join(names)}")
    return merged


def _registries(name: str) -> list[Registry]:
    module_name, _, attribute = name.partition(":")
    module = _import(module_name)
    if not attribute:
        registries = [value for value in vars(module).values() if isinstance(value, Registry)]
        if not registries:
            raise ConfigurationError(f"{name}: the module holds no Registry")
        return registries
    value: object = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Registry):
        raise ConfigurationError(f"{name}: this is not a Registry but {type(value).__name__}")
    return [value]


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigurationError(f"{name}: the module can't be imported: {what}{_origin(error)}") from error


def _origin(error: BaseException) -> str:
    """Where in the user's files an import failed."""
    if isinstance(error, SyntaxError):
        return ""  # its own text says so
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename not in (__file__, importlib.__file__)
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _place(function: object) -> str:
    if not inspect.isroutine(function):
        raise ConfigurationError(f"a task is a function, not {type(function).__name__}")
    where = function_name(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{where}: a generator can't be a task")
    return where


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH:
        raise ConfigurationError(f"a task name is text of 1 to {MAX_NAME_LENGTH} characters")
    if "\0" in name or not name.isprintable():
        raise ConfigurationError(f"the task name {name!r} holds a character that can't be printed")


def _duration(value: timedelta | float | None) -> timedelta | None:
    try:
        return value if value is None or isinstance(value, timedelta) else timedelta(seconds=value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{value!r} is neither a timedelta nor seconds") from error

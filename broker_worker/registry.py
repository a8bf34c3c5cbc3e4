"""Handlers by task name, and what they need: resources, decoders, middleware."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from broker_worker.context import BaseContext, Context, SyncContext
from broker_worker.errors import ConfigurationError
from broker_worker.handler import Handler, Overrides, Way
from broker_worker.message import MAX_NAME_LENGTH, is_json, media_type
from broker_worker.middleware import Middleware
from broker_worker.payload import (
    Decoder,
    Function,
    Signature,
    function_name,
    is_session,
    read_resources,
    read_signature,
)
from broker_worker.resource import Resource, ResourceFactory, read_resource
from broker_worker.retry import Policy, as_duration

F = TypeVar("F", bound=Function)
R = TypeVar("R", bound=ResourceFactory)
D = TypeVar("D", bound=Decoder)
M = TypeVar("M", bound=Middleware)
ErrorType = type[Exception]


@dataclass(frozen=True, slots=True)
class _Registration:
    """A decorated function or class, unread: its annotations may name what comes further down."""

    name: str
    target: Function
    overrides: Overrides
    default_for: tuple[str, ...]
    is_process: bool
    memory_limit: int | None
    middleware: list[Middleware]  # of the registry that it was registered in


class Registry:
    """The handlers of a program."""

    def __init__(self) -> None:
        self._registration_by_name: dict[str, _Registration] = {}
        self._handler_by_name: dict[str, Handler] = {}
        self._name_by_queue: dict[str, str] = {}
        self._decoder_by_media_type: dict[str, Decoder] = {}
        self._resource_factories: list[Function] = []
        self._resource_by_type: dict[type, Resource] | None = None
        self._middleware: list[Middleware] = []

    def task(  # noqa: PLR0913 - each is one thing that an author may say of a task
        self,
        name: str,
        *,
        max_attempts: int | None = None,
        retry_delay: timedelta | float | None = None,
        retry_max_delay: timedelta | float | None = None,
        retry_jitter: float | None = None,
        retry_on: ErrorType | Sequence[ErrorType] = (),
        give_up_on: ErrorType | Sequence[ErrorType] = (),
        policies: Mapping[ErrorType, Policy] | None = None,
        timeout: timedelta | float | None = None,
        deadline: timedelta | float | None = None,
        process: bool = False,
        memory_limit: int | None = None,
        default_for: str | Sequence[str] = (),
    ) -> Callable[[F], F]:
        """Register the decorated function, or class with a method `run`, and return it unchanged.

        Durations are timedeltas or seconds; what is not given follows the settings.

        Args:
            name: the task's name: the `type` of its messages.
            max_attempts: runs of the handler per task.
            retry_delay: before the second attempt; doubles with each.
            retry_max_delay: where the doubling ends.
            retry_jitter: the part of each wait that is drawn, 0 to 1.
            retry_on: only these errors are tried again.
            give_up_on: these are not; of all classes named here, the most specific decides.
            policies: other attempts and delays for some errors.
            timeout: of one attempt.
            deadline: for all attempts together, from the start of the first; then it is dead, `timeout`.
            process: run in a child process.
            memory_limit: bytes that the child process may use.
            default_for: in these queues, a message without a type is this task.
        """

        def register(target: F) -> F:
            where = _place(target)
            try:
                _check_name(name)
                overrides = Overrides(
                    policy=Policy(max_attempts, retry_delay, retry_max_delay, retry_jitter),
                    timeout=as_duration(timeout, name="timeout"),
                    deadline=as_duration(deadline, name="deadline"),
                    retry_on=_several(retry_on, "retry_on"),
                    give_up_on=_several(give_up_on, "give_up_on"),
                    policy_by_error=dict((policies or {}).items()),
                )
                _check_memory_limit(memory_limit, is_process=process)
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}: {error}") from error
            queues = (default_for,) if isinstance(default_for, str) else tuple(default_for)
            self._add(_Registration(name, target, overrides, queues, process, memory_limit, self._middleware))
            return target

        return register

    def resource(self, factory: R) -> R:
        """Register what is opened once per process and handed to handlers by its type; return it unchanged.

        `factory` is an async generator function that yields it once, or the same behind
        `contextlib.asynccontextmanager`; its return annotation names the type:
        `AsyncIterator[Client]`. Its own parameters are other resources. Opened before the
        worker is ready, closed after it has drained.
        """
        self._resource_factories.append(factory)
        self._forget_built()
        return factory

    def middleware(self, hook: M) -> M:
        """Put a hook around every attempt of this registry's tasks; the first registered is outermost."""
        self._middleware.append(hook)
        self._forget_built()
        return hook

    def decoder(self, content_type: str) -> Callable[[D], D]:
        """Register the decorated function, bytes to object, for bodies of another media type than JSON."""
        media = media_type(content_type)
        if is_json(media):
            raise ConfigurationError(f"a decoder for {media!r}: JSON is built in")

        def register(decoder: D) -> D:
            self._add_decoder(media, decoder)
            return decoder

        return register

    @property
    def resources(self) -> Mapping[type, Resource]:
        """All resources, by type.

        Raises:
            ConfigurationError: a factory can't be used, or two of them make the same type.
        """
        if self._resource_by_type is None:
            found: dict[type, Resource] = {}
            for factory in self._resource_factories:
                resource = read_resource(factory)
                if resource.kind in found:
                    name = resource.kind.__name__
                    raise ConfigurationError(f"{function_name(factory)}: there is a resource {name} already")
                found[resource.kind] = resource
            for resource in found.values():
                resource.needs |= read_resources(resource.factory, resources=found)
            self._resource_by_type = found
        return self._resource_by_type

    def name_of(self, target: Function) -> str | None:
        """Find the name under which a function or class is registered."""
        return next(
            (each.name for each in self._registration_by_name.values() if each.target is target), None
        )

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
        self._resource_factories += other._resource_factories
        self._forget_built()

    def _forget_built(self) -> None:
        self._handler_by_name.clear()
        self._resource_by_type = None

    def _add(self, registration: _Registration) -> None:
        where = function_name(registration.target)
        known = self._registration_by_name.get(registration.name)
        if known is not None:
            by = function_name(known.target)
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
        target = registration.target
        is_class = inspect.isclass(target)
        function: Function = getattr(target, "run") if is_class else target  # noqa: B009 - likewise
        signature = read_signature(function, resources=self.resources, is_method=is_class)
        where = function_name(function)
        is_async = inspect.iscoroutinefunction(function)
        way = Way.PROCESS if registration.is_process else Way.LOOP if is_async else Way.THREAD
        context = _context(signature, where, is_async=is_async)
        session = next((name for name, kind in signature.injected.items() if is_session(kind)), None)
        if session is not None and way is not Way.LOOP:
            raise ConfigurationError(
                f"{where}: only an async handler on the event loop can have an AsyncSession"
            )
        return Handler(
            name=registration.name,
            target=target,
            way=way,
            payload=signature.payload,
            result=signature.result,
            context_parameter=context[0] if context else None,
            context_type=context[1] if context else Context,
            session_parameter=session,
            resource_by_parameter={
                name: kind for name, kind in signature.injected.items() if kind in self.resources
            },
            resource_by_field=self._fields(target) if is_class else None,
            overrides=registration.overrides,
            memory_limit=registration.memory_limit,
            default_for=registration.default_for,
            decoder_by_media_type=self._decoder_by_media_type,
            middleware=registration.middleware,
        )

    def _fields(self, target: Function) -> Mapping[str, type]:
        constructor = getattr(target, "__init__")  # noqa: B009 - a class, typed as what it is called as
        if constructor is object.__init__:
            return {}
        return read_resources(constructor, resources=self.resources, is_method=True)


def _context(signature: Signature, where: str, *, is_async: bool) -> tuple[str, type[BaseContext]] | None:
    """Find the context parameter, and see that it is of the kind that its function can use."""
    found = [(name, kind) for name, kind in signature.injected.items() if issubclass(kind, BaseContext)]
    if len(found) > 1:
        raise ConfigurationError(f"{where}: parameter {found[1][0]!r}: there is a context parameter already")
    for name, kind in found:
        if issubclass(kind, SyncContext if is_async else Context):
            right = "an async one takes Context" if is_async else "a plain function takes SyncContext"
            raise ConfigurationError(f"{where}: parameter {name!r}: {right}")
    return found[0] if found else None


def _several(kinds: ErrorType | Sequence[ErrorType], name: str) -> tuple[ErrorType, ...]:
    if isinstance(kinds, type):
        return (kinds,)
    try:
        return tuple(kinds)
    except TypeError as error:
        raise ConfigurationError(f"{name}: {kinds!r} is not an exception class") from error


def _place(target: object) -> str:
    if inspect.isclass(target):
        run = inspect.getattr_static(target, "run", None)
        if not inspect.isfunction(run):
            raise ConfigurationError(f"{function_name(target)}: a class that is a task has a method run")
        _place(run)
        return function_name(target)
    if not inspect.isroutine(target):
        raise ConfigurationError(f"a task is a function or a class, not {type(target).__name__}")
    where = function_name(target)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise ConfigurationError(f"{where}: a generator can't be a task")
    return where


def _check_memory_limit(limit: int | None, *, is_process: bool) -> None:
    is_size = isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
    if limit is not None and not (is_process and is_size):
        raise ConfigurationError("memory_limit is a number of bytes, for process=True only")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH:
        raise ConfigurationError(f"a task name is text of 1 to {MAX_NAME_LENGTH} characters")
    if "\0" in name or not name.isprintable():
        raise ConfigurationError(f"the task name {name!r} holds a character that can't be printed")

"""What handlers share, opened once per process; and the instances of handlers that are classes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, suppress

from broker_worker.cancellation import cancels
from broker_worker.errors import BrokerWorkerError, ConfigurationError
from broker_worker.handler import Handler, Way
from broker_worker.registry import Registry

CLOSE_LIMIT = 2.0  # seconds


class ResourceError(BrokerWorkerError):
    """A resource, or a handler's class, could not be made."""


class Resources:
    """Opens them in the order in which they need each other, and closes them in the reverse one."""

    def __init__(self, registry: Registry, *, ways: Collection[Way] = tuple(Way)) -> None:
        """Take what handlers that run in one of `ways` need, and what no handler asks for."""
        self._registry = registry
        self._ways = ways
        self._closers: list[AbstractAsyncContextManager[object]] = []
        self._open: dict[type, object] = {}
        self._opening: list[type] = []
        self._instance_by_name: dict[str, object] = {}

    async def open(self) -> None:
        """Open the resources and make the instances of class handlers. Once open, it does nothing.

        Raises:
            ResourceError: one line that names the one that failed; what was open is closed.
            ConfigurationError: two need each other.
        """
        try:
            for kind in self._registry.resources:
                if self._is_for_here(kind):
                    await self._get(kind)
            for handler in self._registry.handlers:
                is_here = handler.is_class and handler.way in self._ways
                if is_here and handler.name not in self._instance_by_name:
                    self._instance_by_name[handler.name] = self._make(handler)
        except BaseException:
            self._opening.clear()
            with suppress(ResourceError):  # why it can't be opened says more
                await self.close()
            raise

    async def close(self) -> None:
        """Close what is open, each within 2 s; safe to repeat.

        Raises:
            ResourceError: some could not be closed; the others are.
        """
        self._open.clear()
        self._instance_by_name.clear()
        faults = []
        cancels_before = cancels()
        while self._closers:
            try:
                async with asyncio.timeout(CLOSE_LIMIT):
                    await self._closers.pop().__aexit__(None, None, None)
            except (Exception, asyncio.CancelledError) as error:
                if cancels() > cancels_before:
                    raise
                faults.append(_short(error))
        if faults:
            raise ResourceError(f"resources can't be closed: {'; '.join(faults)}")

    def function(self, handler: Handler) -> Callable[..., object]:
        """What to call: the function itself, or `run` of the instance."""
        if not handler.is_class:
            return handler.target
        run: Callable[..., object] = getattr(self._instance_by_name[handler.name], "run")  # noqa: B009 - not typed
        return run

    def arguments(self, handler: Handler) -> Mapping[str, object]:
        """The resources among a handler's parameters."""
        return {name: self._open[kind] for name, kind in handler.resource_by_parameter.items()}

    def _is_for_here(self, kind: type) -> bool:
        """Whether a handler that runs here asks for it; what nobody asks for may be there for its effect."""
        ways = {handler.way for handler in self._registry.handlers if kind in handler.resource_types}
        return not ways or bool(ways & set(self._ways))

    async def _get(self, kind: type) -> object:
        if kind in self._open:
            return self._open[kind]
        if kind in self._opening:
            names = " -> ".join(each.__name__ for each in (*self._opening, kind))
            raise ConfigurationError(f"resources need each other: {names}")
        self._opening.append(kind)
        resource = self._registry.resources[kind]
        needs = {name: await self._get(needed) for name, needed in resource.needs.items()}
        try:
            opening = resource.open(**needs)
            self._open[kind] = await opening.__aenter__()
        except Exception as error:
            raise ResourceError(f"the resource {kind.__name__} can't be opened: {_short(error)}") from error
        self._closers.append(opening)
        self._opening.remove(kind)
        return self._open[kind]

    def _make(self, handler: Handler) -> object:
        fields = {name: self._open[kind] for name, kind in (handler.resource_by_field or {}).items()}
        try:
            return handler.target(**fields)
        except Exception as error:
            raise ResourceError(f"the handler of {handler.name!r} can't be made: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"

"""What handlers share: opened in the order of need, closed in the reverse, handed over by type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from broker_worker.errors import ConfigurationError
from broker_worker.handler import Way
from broker_worker.outcome import Succeeded
from broker_worker.registry import Registry
from broker_worker.testing.clock import in_virtual_time
from broker_worker.worker.resources import ResourceError, Resources
from tests.unit.test_executor import Bench


class Pool:
    pass


class Client:
    pass


async def pool() -> AsyncIterator[Pool]:
    yield Pool()


class Log(list[str]):
    """What happened, in its order."""

    def registry(self) -> Registry:
        registry = Registry()

        @registry.resource
        async def client(_pool: Pool) -> AsyncIterator[Client]:
            self.append("client opens")
            yield Client()
            self.append("client closes")

        @registry.resource
        @asynccontextmanager
        async def pool() -> AsyncIterator[Pool]:
            self.append("pool opens")
            yield Pool()
            self.append("pool closes")

        return registry


async def test_resources_open_in_the_order_of_need_and_close_in_the_reverse() -> None:
    log = Log()
    resources = Resources(log.registry())

    await resources.open()
    await resources.open()
    await resources.close()

    assert log == ["pool opens", "client opens", "client closes", "pool closes"]


@pytest.mark.parametrize("is_included", [False, True])
async def test_functions_and_classes_get_resources_by_their_annotations(*, is_included: bool) -> None:
    registry, made = Log().registry(), list[object]()

    @registry.task("function")
    async def function(number: int, client: Client) -> str:
        return f"{type(client).__name__} {number}"

    @registry.task("class")
    @dataclass
    class Class:
        client: Client

        def __post_init__(self) -> None:
            made.append(self)

        def run(self, number: int, pool: Pool) -> str:
            return f"{type(self.client).__name__} {type(pool).__name__} {number}"

    outer = Registry()
    outer.include(registry)
    here = Bench(outer if is_included else registry)
    await here.resources.open()
    await here.resources.open()
    by_name = {handler.name: handler for handler in here.registry.handlers}

    outcomes = [await here.execute(by_name[name], {"number": 3}) for name in ("function", "class", "class")]

    await here.resources.close()
    here.executor.close()
    assert outcomes == [Succeeded('"Client 3"'), *[Succeeded('"Client Pool 3"')] * 2]
    assert len(made) == 1


async def test_an_async_run_is_awaited() -> None:
    registry = Registry()

    @registry.task("it")
    class It:
        async def run(self, number: int) -> int:
            return number + 1

    here = Bench(registry)
    await here.resources.open()

    assert await here.execute(registry.handlers[0], {"number": 1}) == Succeeded("2")


async def test_a_resource_that_fails_is_one_line_and_closes_what_was_open() -> None:
    log = Log()
    registry = log.registry()

    class Broken:
        pass

    async def broken(_client: Client) -> AsyncIterator[Broken]:
        raise OSError("no\nroute")
        yield Broken()

    broken.__annotations__ = {"_client": Client, "return": AsyncIterator[Broken]}
    registry.resource(broken)

    with pytest.raises(ResourceError) as caught:
        await Resources(registry).open()

    assert str(caught.value) == "the resource Broken can't be opened: OSError: no route"
    assert log[-2:] == ["client closes", "pool closes"]


async def test_a_class_that_can_not_be_made_is_one_line() -> None:
    registry = Registry()

    @registry.task("it")
    class It:
        def __init__(self) -> None:
            raise OSError("no\nroute")

        async def run(self) -> None: ...

    with pytest.raises(ResourceError, match=r"^the handler of 'it' can't be made: OSError: no route$"):
        await Resources(registry).open()


async def test_resources_that_need_each_other_are_named_each_time() -> None:
    registry = Registry()

    @registry.resource
    async def client(_: Pool) -> AsyncIterator[Client]:
        yield Client()

    @registry.resource
    async def pool(_: Client) -> AsyncIterator[Pool]:
        yield Pool()

    resources = Resources(registry)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="need each other: Client -> Pool -> Client"):
            await resources.open()


def test_two_resources_of_one_type_are_refused() -> None:
    registry = Registry()
    registry.resource(pool)
    other = Registry()
    other.resource(pool)
    registry.include(other)

    with pytest.raises(ConfigurationError, match="pool: there is a resource Pool already"):
        _ = registry.resources


def no_generator() -> Pool:
    return Pool()


async def no_type():  # type: ignore[no-untyped-def]  # noqa: ANN201 - as somebody may write
    yield Pool()


async def no_resource(size: int) -> AsyncIterator[Pool]:
    yield Pool()


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (no_generator, "a resource is an async generator function that yields it once"),
        (no_type, r"its return annotation must be AsyncIterator\[<a class>\]"),
        (no_resource, "parameter 'size' is not annotated with a resource"),
    ],
)
def test_a_factory_that_can_not_be_used_is_one_line(factory: Callable[..., Any], says: str) -> None:
    registry = Registry()
    registry.resource(factory)

    with pytest.raises(ConfigurationError, match=f"{factory.__name__}: {says}"):
        _ = registry.resources


class WithoutRun:
    pass


class StaticRun:
    @staticmethod
    async def run() -> None: ...


class GeneratorRun:
    def run(self) -> Iterator[int]:
        yield 1


class Unknown:
    def __init__(self, size: int) -> None: ...

    async def run(self) -> None: ...


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (WithoutRun, "WithoutRun: a class that is a task has a method run"),
        (StaticRun, "StaticRun: a class that is a task has a method run"),
        (GeneratorRun, "GeneratorRun.run: a generator can't be a task"),
        (Unknown, "Unknown.__init__: parameter 'size' is not annotated with a resource"),
    ],
)
def test_a_class_that_can_not_serve_is_one_line(target: Callable[..., object], says: str) -> None:
    def register() -> None:
        registry = Registry()
        registry.task("it")(target)
        _ = registry.handlers

    with pytest.raises(ConfigurationError, match=says):
        register()


async def test_what_only_handlers_elsewhere_ask_for_is_not_opened_here() -> None:
    log = Log()
    registry = log.registry()

    @registry.task("child", process=True)
    async def child(client: Client) -> None: ...

    @registry.task("loop")
    async def loop(pool: Pool) -> None: ...

    await Resources(registry, ways=(Way.LOOP, Way.THREAD)).open()
    assert log == ["pool opens"]

    await Resources(registry, ways=(Way.PROCESS,)).open()
    assert log == ["pool opens", "pool opens", "client opens"]


async def test_what_no_handler_asks_for_is_opened_for_its_effect() -> None:
    log = Log()

    await Resources(log.registry(), ways=(Way.LOOP,)).open()

    assert log == ["pool opens", "client opens"]


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


async def await_what_it_has_cancelled() -> None:
    poller = asyncio.create_task(hang())
    await asyncio.sleep(0)
    poller.cancel()
    await poller


@pytest.mark.parametrize(
    ("end", "says"), [(hang, "TimeoutError"), (await_what_it_has_cancelled, "CancelledError")]
)
@in_virtual_time
async def test_a_resource_that_does_not_close_keeps_no_other_open(
    end: Callable[[], Awaitable[None]], says: str
) -> None:
    closed: list[str] = []
    registry = Registry()

    @registry.resource
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        closed.append("pool")

    @registry.resource
    async def client(_pool: Pool) -> AsyncIterator[Client]:
        yield Client()
        await end()

    resources = Resources(registry)
    await resources.open()
    with pytest.raises(ResourceError, match=f"can't be closed: {says}"):
        await resources.close()

    assert closed == ["pool"]

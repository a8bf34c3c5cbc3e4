"""The pytest plugin: the fixture `harness`, whose tests run in virtual time.

pytest loads this at each start, so nothing that costs is imported before a test asks for it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from broker_worker.registry import Registry
    from broker_worker.testing.harness import Harness

MARKER = "broker_worker"
HANDLERS = "broker_worker_handlers"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Know our option."""
    parser.addini(
        HANDLERS, "modules with the Registry that the fixture harness runs", type="args", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    """Know our marker."""
    config.addinivalue_line(
        "markers", f"{MARKER}(queues=…, max_attempts=…, …): what the fixture harness is made with, beside"
    )


@pytest.fixture
def broker_worker_registry(pytestconfig: pytest.Config) -> Registry:
    """The registry under test: override this, or name its modules in the option broker_worker_handlers."""
    names: list[str] = pytestconfig.getini(HANDLERS)
    if not names:
        pytest.fail(
            "which handlers? Set the option broker_worker_handlers = <module> in pytest's configuration, "
            "or define a fixture broker_worker_registry that returns your Registry",
            pytrace=False,
        )
    from broker_worker.loading import load_registries  # noqa: PLC0415 - lazily, as the module says

    return load_registries(names)


@pytest.fixture
def broker_worker_options() -> Mapping[str, object]:
    """The arguments of `Harness` for all tests: override this; a marker says more for one."""
    return {}


@pytest.fixture
def harness(
    request: pytest.FixtureRequest,
    broker_worker_registry: Registry,
    broker_worker_options: Mapping[str, object],
) -> Harness:
    """A worker in memory and in virtual time, open while the test runs, which is an `async def`."""
    from broker_worker.testing.harness import Harness  # noqa: PLC0415 - lazily, as the module says

    options = dict(broker_worker_options)
    for marker in reversed(list(request.node.iter_markers(MARKER))):  # the closest has the last word
        options |= marker.kwargs
    return Harness(broker_worker_registry, **options)  # type: ignore[arg-type]  # its own business


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run a test that asks for the harness on a loop of ours, whoever else would run coroutines."""
    given = getattr(pyfuncitem, "funcargs", {}).get("harness")
    if given is None or not _is_harness(given):
        return (yield)
    # pytest-asyncio has wrapped it in a plain function; whatever else is around it stays
    test = inspect.unwrap(pyfuncitem.obj, stop=inspect.iscoroutinefunction)
    if not inspect.iscoroutinefunction(test):
        pytest.fail(f"{pyfuncitem.name} asks for the harness: it has to be an async def", pytrace=False)
    before, pyfuncitem.obj = pyfuncitem.obj, _in_harness(test, given)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = before


def _is_harness(value: object) -> bool:
    from broker_worker.testing.harness import Harness  # noqa: PLC0415 - lazily, as the module says

    return isinstance(value, Harness)


def _in_harness(test: Callable[..., Awaitable[None]], harness: Harness) -> Callable[..., None]:
    from broker_worker.testing.clock import VirtualLoop  # noqa: PLC0415 - lazily, as the module says

    async def opened(arguments: Mapping[str, object]) -> None:
        async with harness:
            await test(**arguments)

    def run(**arguments: object) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(opened(arguments))

    return run

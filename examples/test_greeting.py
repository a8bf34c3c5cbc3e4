"""A test of a handler, for pytest: nothing is installed but broker-worker, and no time passes."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from broker_worker import Context, Registry
from broker_worker.testing import Harness, make_context

registry = Registry()


@registry.task("greeting.say", max_attempts=20, retry_delay=3600)
async def say(name: str, context: Context) -> str:
    if name == "Eve" and context.attempt < 10:
        raise ConnectionError("Eve is out")
    return f"Hello, {name}!"


@pytest.fixture
def broker_worker_registry() -> Registry:
    return registry


async def test_ada_is_greeted(harness: Harness) -> None:
    task_id = await harness.publish(say, {"name": "Ada"})

    await harness.drain()

    assert harness.task(task_id).result == "Hello, Ada!"


async def test_eve_is_greeted_in_the_end(harness: Harness) -> None:
    task_id = await harness.publish(say, {"name": "Eve"})

    await harness.drain()

    harness.assert_succeeded(task_id)
    task = harness.task(task_id)
    assert len(task.retries) == 9
    assert all(wait <= timedelta(hours=1) for wait in task.retries)


def test_a_handler_is_a_function() -> None:
    assert asyncio.run(say("Bob", make_context())) == "Hello, Bob!"

"""Handlers of the behaviours that the harness and the real services have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from broker_worker import BaseContext, CallNext, Context, GiveUp, Outcome, Registry, Retry

registry = Registry()
seen_outcomes: dict[str, list[str]] = {}  # by task id, in this process


class Greeting:
    """A resource."""

    def __init__(self, word: str) -> None:
        self.word = word


@registry.resource
async def greeting() -> AsyncIterator[Greeting]:
    yield Greeting("hello")


@registry.middleware
async def watch(context: BaseContext, call_next: CallNext) -> Outcome:
    outcome = await call_next()
    seen_outcomes.setdefault(context.task_id, []).append(type(outcome).__name__)
    return outcome


@registry.task("stage.seen")
async def seen(task_id: str) -> list[str]:
    """What the middleware saw of another task."""
    return seen_outcomes.get(task_id, [])


@registry.task("stage.double")
async def double(number: int) -> int:
    return 2 * number


@registry.task("stage.in_a_thread")
def in_a_thread(number: int) -> int:
    return 2 * number


@registry.task("stage.in_a_child", process=True)
def in_a_child(number: int) -> int:
    return 2 * number


@registry.task("stage.greet")
class Greet:
    def __init__(self, greeting: Greeting) -> None:
        self.greeting = greeting

    async def run(self, name: str) -> str:
        return f"{self.greeting.word} {name}"


@registry.task("stage.fails_twice", retry_delay=0.1)
async def fails_twice(context: Context) -> int:
    if context.attempt < 3:
        raise ConnectionError("away")
    return context.attempt


@registry.task("stage.fails_always", max_attempts=3, retry_delay=0.1)
async def fails_always() -> None:
    raise RuntimeError("always")


@registry.task("stage.gives_up")
async def gives_up() -> None:
    raise GiveUp("no such customer")


@registry.task("stage.gives_up_on", give_up_on=KeyError)
async def gives_up_on() -> None:
    raise KeyError("customer")


@registry.task("stage.asks_again")
async def asks_again(context: Context) -> int:
    if context.attempt == 1:
        raise Retry("not yet", delay=timedelta(seconds=1.5))
    return context.attempt


@registry.task("stage.too_slow", timeout=0.3, max_attempts=1)
async def too_slow() -> None:
    await asyncio.sleep(3600)


@registry.task("stage.has_a_deadline", deadline=14, retry_delay=5, retry_jitter=0, max_attempts=10)
async def has_a_deadline() -> None:
    raise ConnectionError("away")


@registry.task("stage.hangs")
async def hangs(context: Context) -> None:
    await asyncio.sleep(3600)


@registry.task("stage.reports")
async def reports(context: Context) -> None:
    await context.progress(0.25, "a quarter")
    await asyncio.sleep(60)


@registry.task("stage.saves", retry_delay=0.1)
async def saves(context: Context) -> int:
    if context.attempt == 1:
        await context.checkpoint({"row": 7})
        raise ConnectionError("away")
    return int(context.saved["row"])


@registry.task("stage.sends")
async def sends(number: int, context: Context) -> None:
    await context.send(double, {"number": number}, id=f"{context.task_id}-child")


@registry.task("stage.sends_and_fails", max_attempts=1)
async def sends_and_fails(context: Context) -> None:
    await context.send(double, {"number": 1}, id=f"{context.task_id}-child")
    raise RuntimeError("after all")


@registry.task("stage.tells")
async def tells(exchange: str, context: Context) -> None:
    await context.send_event({"order": 7}, exchange=exchange, routing_key="order.booked")

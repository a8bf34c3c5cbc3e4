"""What the daemons of the e2e tests run. Each run is a line in the file that TEST_RUNS names."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from broker_worker import BaseContext, Context, GiveUp, Registry, Retry, SyncContext

registry = Registry()


def note(context: BaseContext) -> None:
    line = f"{context.name} {context.task_id} {context.attempt}\n".encode()
    descriptor = os.open(os.environ["TEST_RUNS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line)  # one write: lines of two processes do not mix
    os.close(descriptor)


async def gate_opens() -> None:
    while not Path(os.environ["TEST_GATE"]).exists():
        await asyncio.sleep(0.02)


@registry.task("double")
async def double(x: int, context: Context) -> int:
    note(context)
    return 2 * x


@registry.task("gated")
async def gated(context: Context) -> str:
    note(context)
    await gate_opens()
    return "through"


@registry.task("takes_a_while")
async def takes_a_while(seconds: float, context: Context) -> str:
    note(context)
    await asyncio.sleep(seconds)
    return "slept"


@registry.task("fails_once")
async def fails_once(context: Context) -> int:
    note(context)
    if context.attempt == 1:
        raise ValueError("the first time")
    return context.attempt


@registry.task("kills_once")
async def kills_once(context: Context) -> int:
    note(context)
    if context.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return context.attempt


@registry.task("always_fails", max_attempts=2)
async def always_fails(context: Context) -> None:
    note(context)
    raise RuntimeError("always")


@registry.task("gives_up")
async def gives_up(context: Context) -> None:
    note(context)
    raise GiveUp("no such customer")


@registry.task("asks_again")
async def asks_again(context: Context) -> int:
    note(context)
    if context.attempt < 3:
        raise Retry(delay=0.1)
    return context.attempt


@registry.task("too_slow", timeout=0.2, max_attempts=1)
async def too_slow(context: Context) -> None:
    note(context)
    await asyncio.sleep(3600)


@registry.task("in_thread")
def in_thread(x: int, context: SyncContext) -> int:
    note(context)
    time.sleep(0.01)
    return x


@registry.task("large_result")
async def large_result(context: Context) -> str:
    note(context)
    return "x" * 1_000_000


@registry.task("odd_result")
async def odd_result(context: Context) -> object:
    note(context)
    return object()


@registry.task("echo")
async def echo(text: str, context: Context) -> dict[str, object]:
    note(context)
    return {"text": text, "headers": {k: str(v) for k, v in context.message.headers.items()}}

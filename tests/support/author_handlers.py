"""Handlers of every kind, for daemons of the e2e tests. Each run is a line in the file TEST_RUNS."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from pathlib import Path

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker import Context, Registry, SyncContext
from tests.support.handlers import gate_opens, note

registry = Registry()


@registry.task("healthy")
async def healthy(context: Context) -> None:
    note(context)
    await gate_opens()


@registry.task("kills_the_daemon", max_attempts=2)
async def kills_the_daemon(context: Context) -> None:
    note(context)
    await gate_opens()
    os.kill(os.getpid(), signal.SIGKILL)


# --- in a child process ----------------------------------------------------------------


@registry.task("child.healthy", process=True)
def healthy_child(context: SyncContext) -> int:
    note(context)
    while not Path(os.environ["TEST_GATE"]).exists():
        time.sleep(0.02)
    return os.getpid()


@registry.task("child.crash", process=True, max_attempts=1, memory_limit=512 * 2**20)
def crash(how: str, context: SyncContext) -> None:
    note(context)
    match how:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(1)
        case _:
            bytearray(2**31)


@registry.task("child.long", process=True, timeout=3600)
def long_child(context: SyncContext) -> None:
    note(context)
    time.sleep(3600)


# --- what can't be ended ---------------------------------------------------------------


@registry.task("endless.thread", timeout=1, max_attempts=2, retry_delay=0)
def endless_thread(context: SyncContext) -> str:
    note(context)
    if context.attempt == 2:
        return "second"
    while True:
        time.sleep(0.01)


@registry.task("endless.swallow", timeout=1, max_attempts=1)
async def swallow(context: Context) -> None:
    note(context)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


# --- asked to end -----------------------------------------------------------------------


@registry.task("long.async", timeout=3600)
async def long_async(context: Context) -> None:
    note(context)
    await asyncio.sleep(3600)


@registry.task("long.thread", timeout=3600)
def long_thread(context: SyncContext) -> None:
    note(context)
    while True:
        context.raise_if_cancelled()
        time.sleep(0.01)


@registry.task("resumed", max_attempts=3, retry_delay=0)
async def resumed(context: Context) -> list[int]:
    """Goes one step further at each attempt, and says how far it has come."""
    note(context)
    steps: list[int] = [*(context.saved or []), context.attempt]
    await context.checkpoint(steps)
    await context.progress(len(steps) / 3, f"step {len(steps)}")
    if len(steps) < 3:
        raise ConnectionError("the next attempt goes on from here")
    return steps


# --- effects in the database ------------------------------------------------------------


@registry.task("effect")
async def effect(session: AsyncSession, context: Context) -> str:
    note(context)
    await session.execute(text("INSERT INTO effects (task_id) VALUES (:id)"), {"id": context.task_id})
    await context.send("sent", {"by": context.task_id}, id=f"sent-by-{context.task_id}")
    return "done"


@registry.task("effect.fails", max_attempts=2, retry_delay=0)
async def failing_effect(session: AsyncSession, context: Context) -> None:
    note(context)
    await session.execute(text("INSERT INTO effects (task_id) VALUES (:id)"), {"id": context.task_id})
    await context.send("sent", {"by": context.task_id})
    raise ConnectionError("after the write")


@registry.task("sent")
async def sent(by: str, context: Context) -> str:
    note(context)
    return by


@registry.task("effect.psycopg")
def effect_by_another_driver(context: SyncContext) -> str:
    """Commits its effect and its end in a transaction of a driver that the worker does not know."""
    note(context)
    with psycopg.connect(os.environ["TEST_DATABASE"]) as connection:
        connection.execute("INSERT INTO effects (task_id) VALUES (%s)", (context.task_id,))
        completion = context.completion("by psycopg")
        connection.execute(completion.sql, completion.parameters)
    return "not the result: that was given with the completion"


@registry.task("effect.forgotten", max_attempts=1)
def forgotten_completion(context: SyncContext) -> None:
    note(context)
    context.completion()

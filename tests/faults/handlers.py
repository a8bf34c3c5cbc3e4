"""What the daemons of a run do. Each attempt, and all it sends, is a line in a file of its process."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker import BaseContext, Context, Registry, SyncContext
from tests.faults.records import Child, HandlerFacts, Record, Run, line

registry = Registry()

FOLDER, PROCESS = "CHAOS_FOLDER", "CHAOS_PROCESS"
EVENTS = "witness.events"  # an exchange
FACTS = {
    "transfer": HandlerFacts(is_transactional=True),
    "receive": HandlerFacts(),
    **{
        name: HandlerFacts()
        for name in (
            "plain", "falters", "fails", "slow", "in_process", "in_thread", "kills_child", "kills_worker",
        )
    },
}  # fmt: skip
SHARE_OF_PARENTS = 0.1  # of transfers: they send a task and an event
EFFECT = text("""
    INSERT INTO public.effects (queue, name, id, attempt, amount)
    VALUES (:queue, :name, :id, :attempt, :amount), (:queue, :name, :id, :attempt, -:amount)""")


def write(record: Record) -> None:
    record.at = time.time()
    path = Path(os.environ[FOLDER]) / f"{record.file}.{os.environ[PROCESS]}.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, f"{line(record)}\n".encode())  # one write: lines of two processes do not mix
    os.close(descriptor)


class Noted:
    """Writes down that an attempt began, and that it came to its end."""

    def __init__(self, context: BaseContext) -> None:
        self._facts = {
            "queue": context.queue,
            "name": context.name,
            "id": context.task_id,
            "attempt": context.attempt,
            "process": os.environ[PROCESS],
        }

    def __enter__(self) -> None:
        write(Run(kind="began", **self._facts))  # type: ignore[arg-type]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            write(Run(kind="ended", **self._facts))  # type: ignore[arg-type]


@registry.task("transfer")
async def transfer(amount: int, session: AsyncSession, context: Context) -> int:
    with Noted(context):
        facts = {
            "queue": context.queue,
            "name": context.name,
            "id": context.task_id,
            "attempt": context.attempt,
        }
        await session.execute(EFFECT, {**facts, "amount": amount})
        if random.random() < SHARE_OF_PARENTS:
            await send(context)
    return amount


async def send(context: Context) -> None:
    parent = {
        "queue": context.queue,
        "name": context.name,
        "id": context.task_id,
        "attempt": context.attempt,
    }
    child = f"{context.task_id}.{context.attempt}.{os.urandom(4).hex()}"
    write(
        Child(
            kind="task",
            **parent,  # type: ignore[arg-type]
            child_queue=context.queue,
            child_name="receive",
            child_id=child,
        )
    )
    write(Child(kind="event", **parent, child_id=child))  # type: ignore[arg-type]
    await context.send("receive", {"parent": context.task_id}, id=child)
    await context.send_event({"child_id": child}, exchange=EVENTS, routing_key="sent")


@registry.task("receive")
async def receive(parent: str, context: Context) -> None:
    with Noted(context):
        await asyncio.sleep(0)


@registry.task("plain")
async def plain(amount: int, context: Context) -> int:
    with Noted(context):
        await asyncio.sleep(0.005)
    return amount


@registry.task("falters", max_attempts=30)
async def falters(context: Context) -> None:
    with Noted(context):
        if context.attempt < 3:
            raise ConnectionError("not yet")


@registry.task("fails", max_attempts=3)
async def fails(context: Context) -> None:
    with Noted(context):
        raise ValueError("never")


@registry.task("slow")
async def slow(context: Context) -> None:
    with Noted(context):
        await asyncio.sleep(random.uniform(0.5, 4.0))


@registry.task("in_process", process=True)
def in_process(amount: int, context: SyncContext) -> int:
    with Noted(context):
        time.sleep(0.01)
    return amount


@registry.task("in_thread")
def in_thread(amount: int, context: SyncContext) -> int:
    with Noted(context):
        time.sleep(0.05)
    return amount


@registry.task("kills_child", process=True, max_attempts=2)
def kills_child(context: SyncContext) -> None:
    with Noted(context):
        os.kill(os.getpid(), signal.SIGKILL)


@registry.task("kills_worker", max_attempts=2)
async def kills_worker(context: Context) -> None:
    with Noted(context):
        os.kill(os.getpid(), signal.SIGKILL)

"""The handlers of simulated daemons. What they do is said in their payload, drawn with the workload."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker import Context, GiveUp, Registry, Retry
from tests.faults.records import Child, HandlerFacts, Run
from tests.simulation.broker import EVENTS
from tests.simulation.loop import LIFE
from tests.simulation.process import SimulatedProcess
from tests.simulation.store import SimulatedTransaction

registry = Registry()
FACTS = {"transfer": HandlerFacts(is_transactional=True)}


class HandlerError(Exception):
    """A handler's own failure."""


def _process() -> SimulatedProcess:
    process = LIFE.get()
    assert isinstance(process, SimulatedProcess)
    return process


def _tell(context: Context, kind: str) -> None:
    process = _process()
    process.world.tell(
        Run(
            kind=kind,  # type: ignore[arg-type]  # began or ended
            queue=context.queue,
            name=context.name,
            id=context.task_id,
            attempt=context.attempt,
            worker=str(process.worker),
            process=process.name,
        )
    )


async def _work(context: Context, seconds: float) -> None:
    _tell(context, "began")
    if seconds:
        await asyncio.sleep(seconds)
    _tell(context, "ended")


@registry.task("ok")
async def ok(context: Context, seconds: float = 0.0) -> str:
    await _work(context, seconds)
    return context.task_id


@registry.task("flaky", max_attempts=5, retry_delay=0.5, retry_max_delay=4)
async def flaky(context: Context, failures: int, seconds: float = 0.0) -> None:
    await _work(context, seconds)
    if context.attempt <= failures:
        raise HandlerError(f"attempt {context.attempt}")


@registry.task("failing", max_attempts=3, retry_delay=0.5, retry_max_delay=4)
async def failing(context: Context, seconds: float = 0.0) -> None:
    await _work(context, seconds)
    raise HandlerError("always")


@registry.task("retrying", max_attempts=4)
async def retrying(context: Context, delay: float) -> None:
    await _work(context, 0.0)
    if context.attempt < 3:
        raise Retry("later", delay=delay)


@registry.task("gives_up")
async def gives_up(context: Context, seconds: float = 0.0) -> None:
    await _work(context, seconds)
    raise GiveUp("no")


@registry.task("slow", timeout=4, max_attempts=2, retry_delay=0.5)
async def slow(context: Context, seconds: float) -> None:
    """Run into its timeout, or not."""
    await _work(context, seconds / context.attempt)


@registry.task("stubborn", timeout=1, max_attempts=2, retry_delay=0.5)
async def stubborn(context: Context, seconds: float) -> None:
    """Swallow its cancellation for a while."""
    _tell(context, "began")
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while (left := end - loop.time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue
    _tell(context, "ended")


@registry.task("crasher", max_attempts=3)
async def crasher(context: Context, crashes: int, seconds: float = 0.0) -> None:
    """Take its process down."""
    _tell(context, "began")
    await asyncio.sleep(seconds)
    process = _process()
    if context.attempt <= crashes and not process.world.is_healed:
        process.world.counts["handler_crash"] += 1
        process.crash()
        await process.world.loop.create_future()
    _tell(context, "ended")


@registry.task("transfer", max_attempts=4, retry_delay=0.5, retry_max_delay=4)
async def transfer(
    session: AsyncSession, context: Context, amount: int, *, failures: int = 0, seconds: float = 0.0
) -> None:
    """Move money from one account to another, in the transaction of the task."""
    _tell(context, "began")
    transaction = cast("SimulatedTransaction", session)
    transaction.add(-amount)
    await asyncio.sleep(seconds)
    transaction.add(amount)
    if context.attempt <= failures:
        raise HandlerError("after its writes")
    _tell(context, "ended")


@registry.task("sender", max_attempts=4, retry_delay=0.5, retry_max_delay=4)
async def sender(
    context: Context, *, tasks: int = 1, events: int = 0, failures: int = 0, seconds: float = 0.0
) -> None:
    """Send tasks and events that leave with its end."""
    _tell(context, "began")
    world = _process().world
    facts: dict[str, Any] = {
        "queue": context.queue,
        "name": context.name,
        "id": context.task_id,
        "attempt": context.attempt,
    }
    for number in range(tasks):
        child = f"{context.task_id}/{context.attempt}.{number}"
        world.tell(Child(kind="task", **facts, child_queue="default", child_name="ok", child_id=child))
        await context.send(ok, {"seconds": 0.0}, id=child, queue="default")
    for number in range(events):
        event = f"{context.task_id}/{context.attempt}/event.{number}"
        world.tell(Child(kind="event", **facts, child_id=event))
        await context.send_event(event, exchange=EVENTS, routing_key="moved")
    await asyncio.sleep(seconds)
    if context.attempt <= failures:
        raise HandlerError("after it sent")
    _tell(context, "ended")


@registry.task("saver", max_attempts=4, retry_delay=0.5, retry_max_delay=4)
async def saver(context: Context, steps: int, seconds: float = 0.0) -> None:
    """Leave checkpoints; fail once halfway."""
    _tell(context, "began")
    done = context.saved or 0
    for step in range(done, steps):
        await asyncio.sleep(seconds)
        await context.checkpoint(step + 1)
        await context.progress((step + 1) / steps)
        if context.attempt == 1 and step == 0:
            raise HandlerError("halfway")
    _tell(context, "ended")

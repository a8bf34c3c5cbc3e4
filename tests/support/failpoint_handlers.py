"""One handler for each way that a task can go, for daemons that are made to fail."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker import Context, GiveUp, Registry, SyncContext
from tests.support.handlers import gate_opens, note

registry = Registry()


@registry.task("plain")
async def plain(context: Context) -> str:
    note(context)
    return "done"


@registry.task("thread")
def in_thread(context: SyncContext) -> str:
    note(context)
    return "done"


@registry.task("fails_once", retry_delay=0)
async def fails_once(context: Context) -> str:
    note(context)
    if not context.saved:
        await context.checkpoint("failed")
        raise ValueError("the first time")
    return "done"


@registry.task("slow")
async def slow(context: Context) -> str:
    note(context)
    await gate_opens()
    return "done"


@registry.task("gives_up")
async def gives_up(context: Context) -> None:
    note(context)
    raise GiveUp("no such customer")


@registry.task("effect")
async def effect(session: AsyncSession, context: Context) -> str:
    note(context)
    await _leave_an_effect(session, context)
    return "done"


@registry.task("effect_fails_once", retry_delay=0)
async def effect_fails_once(session: AsyncSession, context: Context) -> str:
    note(context)
    await _leave_an_effect(session, context)
    if context.attempt == 1:
        raise ValueError("after the write")
    return "done"


@registry.task("sent")
async def sent(context: Context) -> str:
    note(context)
    return "done"


async def _leave_an_effect(session: AsyncSession, context: Context) -> None:
    await session.execute(text("INSERT INTO public.effects (task_id) VALUES (:id)"), {"id": context.task_id})
    await context.send("sent", id=f"sent-by-{context.task_id}")

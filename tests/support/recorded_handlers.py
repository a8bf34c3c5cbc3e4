"""Handlers that leave a mark in what is recorded of them, so that it is known on its way to Postgres."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker import Context, GiveUp, Registry, SyncContext
from tests.support.handlers import gate_opens, note

registry = Registry()


@registry.task("plain")
async def plain(mark: str, context: Context) -> str:
    note(context)
    return mark


@registry.task("thread")
def thread(mark: str, context: SyncContext) -> str:
    note(context)
    return mark


@registry.task("transactional")
async def transactional(mark: str, session: AsyncSession, context: Context) -> str:
    note(context)
    await session.execute(text("INSERT INTO effects (task_id) VALUES (:id)"), {"id": context.task_id})
    return mark


@registry.task("retried", retry_delay=0)
async def retried(mark: str, context: Context) -> str:
    note(context)
    if context.attempt == 1:
        raise ConnectionError(mark)
    return mark


@registry.task("given_up")
async def given_up(mark: str, context: Context) -> None:
    note(context)
    raise GiveUp(mark)


@registry.task("gated")
async def gated(context: Context) -> None:
    note(context)
    await gate_opens()

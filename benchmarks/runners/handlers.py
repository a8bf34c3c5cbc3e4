"""The handlers that broker_worker runs in the benchmarks: the same work in each way to run."""

from __future__ import annotations

from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks import tally
from broker_worker import Registry

INSERT = sql("INSERT INTO bench_rows (n, text) VALUES (:n, :text)")

registry = Registry()


@registry.task("bench")
async def plain(n: int, text: str) -> dict[str, int]:  # noqa: ARG001 - the parameters are the payload
    """Count."""
    tally.count()
    return {"x": 1}


@registry.task("bench_thread")
def in_a_thread(n: int, text: str) -> dict[str, int]:  # noqa: ARG001
    """Count, in a thread."""
    tally.count()
    return {"x": 1}


@registry.task("bench_process", process=True)
def in_a_process(n: int, text: str) -> dict[str, int]:  # noqa: ARG001
    """Count, in a child process."""
    tally.count()
    return {"x": 1}


@registry.task("bench_transactional")
async def transactional(n: int, text: str, session: AsyncSession) -> dict[str, int]:
    """Count, and insert a row in the transaction of the outcome."""
    await session.execute(INSERT, {"n": n, "text": text})
    tally.count()
    return {"x": 1}

"""Mistakes in tests of handlers."""

from __future__ import annotations

from broker_worker import Context, Registry
from broker_worker.testing import Harness, in_virtual_time, make_context, make_sync_context

registry = Registry()


@registry.task("page.fetch")
async def fetch(url: str, context: Context) -> str:
    return url


async def use_contexts() -> None:
    await fetch("/", make_sync_context())  # E: mypy[arg-type] pyright[reportArgumentType]
    make_context(attempts=2)  # E: mypy[call-arg] pyright[reportCallIssue]
    make_context(attempt="2")  # E: mypy[arg-type] pyright[reportArgumentType]


async def use_the_harness(harness: Harness) -> None:
    harness.publish(fetch, {"url": ""})  # E: mypy[unused-coroutine] pyright[reportUnusedCoroutine]
    task_id: int = await harness.publish(fetch, {"url": ""})  # E: mypy[assignment] pyright[reportAssignmentType]
    await harness.publish(fetch, {"url": ""}, times="2")  # E: mypy[arg-type] pyright[reportArgumentType]
    await harness.publish(5, {"url": ""})  # E: mypy[arg-type] pyright[reportArgumentType]
    await harness.advance(minutes="1")  # E: mypy[arg-type] pyright[reportArgumentType]
    await harness.until(True)  # E: mypy[arg-type] pyright[reportArgumentType]
    harness.task(task_id)  # E: mypy[arg-type] pyright[reportArgumentType]
    print(harness.task("1").failure.error)  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]
    Harness(fetch)  # E: mypy[arg-type] pyright[reportArgumentType]


@in_virtual_time  # E: mypy[arg-type] pyright[reportArgumentType]
def not_async() -> None: ...

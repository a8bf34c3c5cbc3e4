"""Handlers that fail as badly as can be, in each of the three places where handlers run."""

from __future__ import annotations

from broker_worker import Context, Registry, SyncContext
from tests.hostile.errors import RAISED, RETURNED, UNSTORABLE

registry = Registry()


def fail(case: str) -> object:
    if case in RETURNED:
        return RETURNED[case]()
    error = RAISED[case]()
    try:
        raise error
    finally:
        if case == "10^5 causes":
            held.append(error)  # the interpreter would take it apart by recursion


held: list[BaseException] = []


@registry.task("on_the_loop", max_attempts=1)
async def on_the_loop(case: str, context: Context) -> object:
    await context.progress(0.5, UNSTORABLE)
    return fail(case)


@registry.task("in_a_thread", max_attempts=1)
def in_a_thread(case: str, context: SyncContext) -> object:
    context.progress(0.5, UNSTORABLE)
    return fail(case)


@registry.task("in_a_process", max_attempts=1, process=True)
def in_a_process(case: str, context: SyncContext) -> object:
    context.progress(0.5, UNSTORABLE)
    return fail(case)


@registry.task("well")
async def well(case: str) -> str:
    return case

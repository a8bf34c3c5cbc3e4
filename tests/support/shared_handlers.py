"""A resource that notes its life in the file of the runs, and a handler that uses it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from broker_worker import Context, Registry
from tests.support.handlers import gate_opens, note

registry = Registry()


class Shared:
    """What the handler asks for."""


def write(line: str) -> None:
    with Path(os.environ["TEST_RUNS"]).open("a") as runs:
        runs.write(f"shared {line} 1\n")


@registry.resource
async def shared() -> AsyncIterator[Shared]:
    write("opened")
    yield Shared()
    write("closed")


@registry.task("uses.shared")
async def uses_shared(shared: Shared, context: Context) -> None:
    note(context)
    await gate_opens()
    write("used")

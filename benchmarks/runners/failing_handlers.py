"""Handlers of the failure path, and the one beside it that succeeds."""

from __future__ import annotations

from benchmarks.payload import RESULT
from broker_worker import Context, Registry

registry = Registry()


class BusyError(Exception):
    """What a service that is asked too much answers with."""


@registry.task("bench")
async def at_once(n: int, text: str, context: Context) -> dict[str, int]:  # noqa: ARG001 - as below
    """Succeed."""
    return RESULT


@registry.task("fails_once")
async def fails_once(n: int, text: str, context: Context) -> dict[str, int]:  # noqa: ARG001
    """Fail with any exception, so that the policy decides, and succeed on the retry."""
    if context.attempt == 1:
        raise BusyError("try again")
    return RESULT

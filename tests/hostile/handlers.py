"""What the daemons run that meet the corpus."""

from __future__ import annotations

from broker_worker import Registry

registry = Registry()


@registry.task("note")
async def note(case: str) -> str:
    """Take what all cases have that are good but for one thing; the row's result says which it was."""
    return case


@registry.task("typed")
async def typed(x: int) -> str:
    return f"{x.bit_length()} bits"


@registry.task("loose")
async def loose() -> None:
    """Take any JSON, and nothing."""


@registry.task("echo")
async def echo(text: str) -> str:
    return text


@registry.task("number")
async def number(x: float) -> float:
    return x

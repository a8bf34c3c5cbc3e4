"""`broker-worker handlers`."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from broker_worker.cli.output import AsJson, Column, print_rows
from broker_worker.cli.session import load_settings

if TYPE_CHECKING:
    from broker_worker.handler import Handler, Limits


@dataclass(frozen=True, slots=True)
class Described:
    """One handler; times in seconds."""

    name: str
    function: str
    runs: str  # async, thread or process
    default_for: tuple[str, ...]
    max_attempts: int
    timeout: float
    deadline: float | None
    retry_delay: float
    retry_max_delay: float
    retry_jitter: float
    payload: Mapping[str, object]


COLUMNS: tuple[Column[Described], ...] = (
    Column("name", lambda row: row.name),
    Column("function", lambda row: row.function),
    Column("runs", lambda row: row.runs),
    Column("default for", lambda row: ", ".join(row.default_for) or None),
    Column("attempts", lambda row: row.max_attempts),
    Column("timeout", lambda row: f"{row.timeout:g}s"),
    Column("deadline", lambda row: None if row.deadline is None else f"{row.deadline:g}s"),
    Column("delays", lambda row: f"{row.retry_delay:g}s to {row.retry_max_delay:g}s"),
)


def handlers(*, as_json: AsJson = False) -> None:
    """Names and limits of the handlers, and with --json the JSON Schema of each payload.

    Example: `broker-worker handlers --json`
    """
    from broker_worker.loading import load_registries

    settings = load_settings("handlers")
    rows = [_described(handler, settings.limits) for handler in load_registries(settings.handlers).handlers]
    print_rows(rows, COLUMNS, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Register."""
    app.command()(handlers)


def _described(handler: Handler, default: Limits) -> Described:
    from broker_worker.payload import function_name

    limits = handler.limits(default)
    return Described(
        name=handler.name,
        function=function_name(handler.target),
        runs=str(handler.way),
        default_for=handler.default_for,
        max_attempts=limits.policy.max_attempts,
        timeout=limits.timeout.total_seconds(),
        deadline=None if limits.deadline is None else limits.deadline.total_seconds(),
        retry_delay=limits.policy.delay.total_seconds(),
        retry_max_delay=limits.policy.max_delay.total_seconds(),
        retry_jitter=limits.policy.jitter,
        payload=handler.payload_schema(),
    )

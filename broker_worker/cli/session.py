"""What commands share: settings, an open database, who asks, and how values are written."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from broker_worker.settings import Settings
    from broker_worker.store.database import Database

T = TypeVar("T")

RATE_UNITS = {"s": 1, "m": 60, "h": 3600}


def _default_actor() -> str:
    from broker_worker.store import audit

    return audit.default_actor()


Actor = Annotated[
    str,
    typer.Option(
        "--actor",
        default_factory=_default_actor,
        show_default="the user that is logged in",
        help="Who does it, for the audit.",
    ),
]
Queue = Annotated[str | None, typer.Option("--queue", "-q", help="Only this queue.")]
Name = Annotated[str | None, typer.Option("--name", "-n", help="Only tasks of this name.")]


def load_settings(*needs: str) -> Settings:
    """Read the environment, as the daemon does."""
    from broker_worker.settings import Settings

    return Settings.load(os.environ, needs=needs)


def with_database(use: Callable[[Database], Awaitable[T]], *, checks_schema: bool = True) -> T:
    """Run one command's work on the database that the settings name."""
    from broker_worker.store.visit import visit

    settings = load_settings("database_url")
    _arm_failpoints()

    async def main() -> T:
        async with visit(
            settings.database_url.reveal, schema=settings.database_schema, checks_schema=checks_schema
        ) as database:
            return await use(database)

    return asyncio.run(main())


def _arm_failpoints() -> None:
    """Have the places fail that tests name."""
    if named := os.environ.get("BROKER_WORKER_FAILPOINT"):
        from broker_worker import failpoints
        from broker_worker.cli.output import note

        failpoints.arm(named)
        note(f"made to fail on purpose, for tests alone: {named}")


def parse_moment(text: str) -> datetime:
    """Read a time of day, or a duration from now on."""
    return _moment(text, sign=1)


def parse_past(text: str) -> datetime:
    """Read a time of day, or a duration until now."""
    return _moment(text, sign=-1)


def parse_span(text: str) -> timedelta:
    """Read a duration."""
    from broker_worker.notation import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a duration such as 30s, 5m, 2h or 7d") from error


def parse_rate(text: str) -> float:
    """Read how many a second: 10, 10/s or 100/m."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(?:/([smh]))?", text.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a rate such as 10/s or 100/m")
    return float(found[1]) / RATE_UNITS[found[2] or "s"]


def _moment(text: str, *, sign: int) -> datetime:
    from broker_worker.notation import parse_duration

    try:
        return datetime.now(UTC) + sign * parse_duration(text)
    except ValueError:
        pass  # a time, then
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a duration such as 30s, 5m, 2h, 7d nor a time such as 2026-01-31T12:00:00Z"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

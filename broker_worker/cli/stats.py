"""`broker-worker stats`."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from broker_worker.cli.output import AsJson, Column, note, print_rows
from broker_worker.cli.session import parse_span, with_database

if TYPE_CHECKING:
    from broker_worker.store.statistics import TaskStats

COLUMNS: tuple[Column[TaskStats], ...] = (
    Column("queue", lambda row: row.queue),
    Column("name", lambda row: row.name),
    Column("queued", lambda row: row.queued),
    Column("running", lambda row: row.running),
    Column("retrying", lambda row: row.retrying),
    Column("succeeded", lambda row: row.succeeded),
    Column("dead", lambda row: row.dead),
    Column("cancelled", lambda row: row.cancelled),
    Column("expired", lambda row: row.expired),
    Column("failed", lambda row: None if row.failure_rate is None else f"{row.failure_rate:.1%}"),
    Column("p50", lambda row: _seconds(row.duration_p50)),
    Column("p95", lambda row: _seconds(row.duration_p95)),
    Column("max", lambda row: _seconds(row.duration_max)),
)


def stats(
    *,
    since: Annotated[
        timedelta,
        typer.Option(
            "--since", parser=parse_span, metavar="DURATION", help="Tasks created within this time."
        ),
    ] = "24h",  # type: ignore[assignment]  # typer parses defaults as it parses what is typed
    as_json: AsJson = False,
) -> None:
    """Counts, failure rate and duration by queue and task name. All that waits is counted, however old.

    Example: `broker-worker stats --since 1h`
    """
    from broker_worker.store.statistics import stats as count

    found = with_database(lambda database: count(database, since=since))
    print_rows(found.rows, COLUMNS, as_json=as_json)
    if found.is_partial:
        note("there are too many: only the newest were counted; ask for less by --since")


def add_to(app: typer.Typer) -> None:
    """Register."""
    app.command()(stats)


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}s"

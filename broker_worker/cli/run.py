"""`broker-worker run`."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import typer

from broker_worker.cli.session import load_settings


def run() -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Example: `BROKER_WORKER_HANDLERS=app.handlers broker-worker run`
    """
    from broker_worker.app import run_daemon

    raise typer.Exit(run_daemon(load_settings("amqp_url", "database_url", "handlers")))


def add_to(app: typer.Typer) -> None:
    """Register."""
    app.command()(run)

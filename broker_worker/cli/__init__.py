"""The command line: what an operator can ask and do, each command with an example.

Only what `--help` needs is imported here and at the top of the modules of commands;
each command imports what it needs when it runs.
"""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from broker_worker.cli import (
    checks,
    database,
    dead_letters,
    dev,
    handlers,
    publishing,
    run,
    stats,
    tasks,
    topology,
)
from broker_worker.cli.commands import Commands

app = typer.Typer(
    name="broker-worker",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with the values of variables would show payloads
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A worker for RabbitMQ and Postgres. Settings are environment variables BROKER_WORKER_*.",
)


def _print_version(is_asked: bool) -> None:  # noqa: FBT001 - the shape of a typer callback
    if is_asked:
        from importlib.metadata import version  # noqa: PLC0415 - reads files; only here

        typer.echo(version("broker-worker"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


run.add_to(app)
dev.add_to(app)
checks.add_to(app)
database.add_to(app)
app.add_typer(topology.commands, name="topology")
handlers.add_to(app)
publishing.add_to(app)
app.add_typer(tasks.commands, name="tasks")
app.add_typer(dead_letters.commands, name="dead")
stats.add_to(app)


def main() -> None:
    """Run one command and exit: 0 done, 1 a check failed or nothing fits, 2 wrong usage or settings."""
    for library in ("aiormq", "aio_pika"):  # a failure is one line of ours; `run` sets up its logs
        logging.getLogger(library).setLevel(logging.CRITICAL)
    app()

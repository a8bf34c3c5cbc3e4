"""`broker-worker check`: is everything there that the daemon needs?"""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from broker_worker.cli.commands import FAILED
from broker_worker.cli.output import AsJson, print_json
from broker_worker.cli.session import load_settings
from broker_worker.errors import BrokerWorkerError, TopologyError
from broker_worker.failure import printable

if TYPE_CHECKING:
    from broker_worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer."""

    check: str
    ok: bool
    detail: str


def check(*, as_json: AsJson = False) -> None:
    """Check settings, broker, topology, database, schema and handlers: a line each; exit 1 if one fails.

    Example: `broker-worker check`
    """

    async def look() -> bool:
        all_ok = True
        async for finding in _findings():
            all_ok = all_ok and finding.ok
            _print(finding, as_json=as_json)
        return all_ok

    if not asyncio.run(look()):
        raise typer.Exit(FAILED)


def add_to(app: typer.Typer) -> None:
    """Register."""
    app.command()(check)


async def _findings() -> AsyncIterator[Finding]:
    try:
        settings = load_settings("amqp_url", "database_url", "handlers")
    except BrokerWorkerError as error:
        yield Finding("settings", ok=False, detail=str(error))
        return
    yield Finding("settings", ok=True, detail=f"queues {', '.join(settings.queues)}")
    for name, look in (
        ("broker", _look_at_broker),
        ("topology", _look_at_topology),
        ("database", _look_at_database),
        ("schema", _look_at_schema),
        ("handlers", _look_at_handlers),
    ):
        yield await _finding(name, look, settings)


async def _finding(name: str, look: Callable[[Settings], Awaitable[str]], settings: Settings) -> Finding:
    try:
        return Finding(name, ok=True, detail=await look(settings))
    except BrokerWorkerError as error:
        return Finding(name, ok=False, detail=str(error))


async def _look_at_broker(settings: Settings) -> str:
    from broker_worker.amqp.connection import connected
    from broker_worker.amqp.urls import address

    async with connected(settings.amqp_url.reveal(), "broker_worker command") as connection:
        return address(connection.url)


async def _look_at_topology(settings: Settings) -> str:
    from broker_worker.amqp.connection import connected
    from broker_worker.amqp.declaration import Problem, verify
    from broker_worker.amqp.looking import has_queue
    from broker_worker.cli.topology import topology_of

    topology = topology_of(settings)
    async with connected(settings.amqp_url.reveal(), "broker_worker command") as connection:
        if not settings.declare:  # without the right to configure, nothing but existence can be asked for
            queues = [topology.work_queue(queue) for queue in settings.queues]
            missing = [queue for queue in queues if not await has_queue(connection, queue)]
            if missing:
                raise TopologyError(f"missing: {', '.join(missing)}")
            return "the queues exist"
        differences = await verify(connection, topology)
    differing = [each.detail for each in differences if each.problem is Problem.DIFFERING]
    if differing:
        raise TopologyError("; ".join(differing))
    if differences:
        return f"{len(differences)} missing, declared when the daemon starts"
    return "as planned"


async def _look_at_database(settings: Settings) -> str:
    from broker_worker.store.visit import visit

    async with visit(
        settings.database_url.reveal, schema=settings.database_schema, checks_schema=False
    ) as database:
        await database.ping()
    return "answers"


async def _look_at_schema(settings: Settings) -> str:
    from broker_worker.store.schema import check_schema
    from broker_worker.store.visit import visit

    async with visit(
        settings.database_url.reveal, schema=settings.database_schema, checks_schema=False
    ) as database:
        return f"revision {await check_schema(database)}"


async def _look_at_handlers(settings: Settings) -> str:
    from broker_worker.loading import load_registries

    return ", ".join(handler.name for handler in load_registries(settings.handlers).handlers)


def _print(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        print_json(finding)
        return
    word = "ok" if finding.ok else "failed"
    color = typer.colors.GREEN if finding.ok else typer.colors.RED
    shown = typer.style(word, fg=color) if sys.stdout.isatty() else word
    lines = [printable(line) for line in finding.detail.splitlines()] or [""]  # a server may have said it
    typer.echo(f"{shown}\t{finding.check}\t{lines[0]}")
    for line in lines[1:]:
        typer.echo(f"\t\t{line}")

"""`broker-worker topology …`: what exists in RabbitMQ, and what should."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import typer

from broker_worker.cli.commands import FAILED
from broker_worker.cli.output import AsJson, Column, note, print_rows
from broker_worker.cli.session import load_settings

if TYPE_CHECKING:
    from broker_worker.amqp.connection import Connection
    from broker_worker.amqp.declaration import Difference
    from broker_worker.amqp.topology import Entity, Topology
    from broker_worker.settings import Settings

T = TypeVar("T")

commands = typer.Typer(
    help="Declare, compare or show the exchanges and queues in RabbitMQ.", no_args_is_help=True
)


@dataclass(frozen=True, slots=True)
class Planned:
    """One entity of the plan; the last two only for bindings."""

    kind: str
    name: str
    type: str | None
    arguments: Mapping[str, object]
    exchange: str | None = None
    routing_key: str | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """One entity that was missing."""

    created: str


def _arguments(row: Planned) -> str:
    if row.exchange is not None:
        return f"to {row.exchange} with key {row.routing_key!r}"
    return " ".join(f"{name}={value}" for name, value in row.arguments.items())


PLAN_COLUMNS: tuple[Column[Planned], ...] = (
    Column("kind", lambda row: row.kind),
    Column("name", lambda row: row.name),
    Column("type", lambda row: row.type),
    Column("arguments", _arguments),
)
DIFFERENCE_COLUMNS: tuple[Column[Difference], ...] = (
    Column("kind", lambda row: row.kind),
    Column("name", lambda row: row.name),
    Column("problem", lambda row: row.problem),
    Column("detail", lambda row: row.detail),
)


@commands.command()
def plan(*, as_json: AsJson = False) -> None:
    """Show what would be declared; asks no broker.

    Example: `broker-worker topology plan --json`
    """
    topology = topology_of(load_settings())
    print_rows([_planned(entity) for entity in topology.plan()], PLAN_COLUMNS, as_json=as_json)


@commands.command()
def apply(*, as_json: AsJson = False) -> None:
    """Declare what is missing. Nothing is ever changed or deleted.

    Example: `broker-worker topology apply`
    """
    from broker_worker.amqp.declaration import declare

    created = [Created(name) for name in with_broker(declare)]
    print_rows(created, (Column[Created]("created", lambda row: row.created),), as_json=as_json)
    note(f"declared {len(created)} that were missing")


@commands.command()
def verify(*, as_json: AsJson = False) -> None:
    """Compare the broker with the plan; exit 1 if something is missing or differs.

    Example: `broker-worker topology verify`
    """
    from broker_worker.amqp.declaration import verify as compare

    differences = with_broker(compare)
    if differences or as_json:
        print_rows(differences, DIFFERENCE_COLUMNS, as_json=as_json)
    if differences:
        raise typer.Exit(FAILED)
    note("everything is as planned")


def with_broker(use: Callable[[Connection, Topology], Awaitable[T]]) -> T:
    """Run one command's work on a connection to the broker."""
    from broker_worker.amqp.connection import connected

    settings = load_settings("amqp_url")

    async def main() -> T:
        async with connected(settings.amqp_url.reveal(), "broker_worker command") as connection:
            return await use(connection, topology_of(settings))

    return asyncio.run(main())


def topology_of(settings: Settings) -> Topology:
    """Plan the topology that the settings ask for."""
    from broker_worker.amqp.topology import Topology

    return Topology(settings.prefix, tuple(settings.queues))


def _planned(entity: Entity) -> Planned:
    from broker_worker.amqp.topology import BindingSpec, ExchangeSpec, QueueSpec

    match entity:
        case ExchangeSpec(name, type_, arguments):
            return Planned("exchange", name, type_, arguments)
        case QueueSpec(name, arguments):
            return Planned("queue", name, None, arguments)
        case BindingSpec(queue, exchange, routing_key):
            return Planned("binding", queue, None, {}, exchange, routing_key)

"""Bring the broker to what `topology.py` says, or say where it differs. Nothing is ever deleted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import aiormq

from broker_worker.amqp.channel import OwnChannel, open_channel, plain_channel
from broker_worker.amqp.connection import Connection
from broker_worker.amqp.failures import translated
from broker_worker.amqp.topology import BindingSpec, Entity, ExchangeSpec, QueueSpec, Topology
from broker_worker.errors import TopologyError

DEADLINE = 10.0  # seconds for the declaration of one entity; a quorum queue takes some milliseconds
INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>\w+) '(?P<name>.+?)' in vhost '.*?': "
    r"received (?P<ours>.+) but current is (?P<theirs>.+)"
)


class Problem(StrEnum):
    """How an entity of the broker is not what it should be."""

    MISSING = "missing"
    DIFFERING = "differing"


@dataclass(frozen=True, slots=True)
class Difference:
    """One entity that is not as planned; `detail` is one line for a person."""

    kind: str
    name: str
    problem: Problem
    detail: str


async def declare(connection: Connection, topology: Topology) -> list[str]:
    """Declare what is missing and return its names, in order; idempotent.

    Needs the right to configure. Each entity is looked for first, so that what was
    missing can be told.

    Raises:
        TopologyError: an entity exists with other arguments; it is named, nothing was changed.
        BrokerUnavailableError: the broker can't do it now, or this user may not.
    """
    created = []
    with translated("declaring the topology"):
        async with _Channels(connection) as channels:
            for entity in topology.plan():
                if not await channels.exists(entity):
                    created.append(_called(entity))
                difference = await channels.declare(entity)
                if difference is not None:
                    raise TopologyError(difference.detail)
    return created


async def verify(connection: Connection, topology: Topology) -> list[Difference]:
    """List what is missing or differs, and change nothing. Needs the right to configure.

    Bindings can't be asked for by AMQP and are left out.
    """
    differences = []
    with translated("comparing the topology"):
        async with _Channels(connection) as channels:
            for entity in topology.plan():
                if isinstance(entity, BindingSpec):
                    continue
                # A declaration of what is missing would create it: so look first.
                if await channels.exists(entity):
                    difference = await channels.declare(entity)
                else:
                    detail = f"{_called(entity)} does not exist"
                    difference = Difference(_kind(entity), entity.name, Problem.MISSING, detail)
                if difference is not None:
                    differences.append(difference)
    return differences


async def bind(connection: Connection, topology: Topology, queues: Collection[str]) -> None:
    """Bind these queues, full names, again; needs the right to configure, and changes nothing as a rule.

    Where somebody deletes a queue and declares it anew, RabbitMQ goes on to serve its consumers and tells
    nobody, but the bindings are gone.

    Raises:
        BrokerUnavailableError: an exchange or a queue is missing, or the broker can't do it now.
    """
    with translated("binding the queues"):
        async with _Channels(connection) as channels:
            for entity in topology.plan():
                if isinstance(entity, BindingSpec) and entity.queue in queues:
                    await channels.declare(entity)


def read_difference(entity: Entity, text: str) -> Difference:
    """Turn the broker's answer to a declaration into one line that names both sides."""
    found = INEQUIVALENT.search(text)
    name = found["name"] if found else _name(entity)
    if found:
        what = f"has {found['argument']} {_plain(found['theirs'])}, ours is {_plain(found['ours'])}"
    else:
        what = f"differs from ours: {text}"
    detail = (
        f"{_kind(entity)} {name} exists and {what}; nothing was changed. "
        "Remove it when it is empty, or use another PREFIX"
    )
    return Difference(_kind(entity), name, Problem.DIFFERING, detail)


class _Channels:
    """A channel for declarations; another one after each refusal, which costs the channel."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: OwnChannel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None and self._connection.is_open:
            async with asyncio.timeout(DEADLINE):
                await self._channel.close()

    async def exists(self, entity: Entity) -> bool:
        if isinstance(entity, BindingSpec):
            return True  # can't be asked for; binding again changes nothing
        try:
            async with asyncio.timeout(DEADLINE):
                await self._declare(entity, passive=True)
        except aiormq.ChannelNotFoundEntity as error:
            if "no exchange" in str(error) or "no queue" in str(error):
                return False
            raise  # it exists and its node is down
        return True

    async def declare(self, entity: Entity) -> Difference | None:
        try:
            async with asyncio.timeout(DEADLINE):
                await self._declare(entity, passive=False)
        except aiormq.ChannelPreconditionFailed as error:
            return read_difference(entity, str(error))
        return None

    async def _declare(self, entity: Entity, *, passive: bool) -> None:
        channel = await self._open()
        match entity:
            case ExchangeSpec(name, exchange_type, arguments):
                await channel.exchange_declare(
                    name,
                    exchange_type=exchange_type,
                    durable=True,
                    passive=passive,
                    arguments=dict(arguments),
                )
            case QueueSpec(name, arguments):
                await channel.queue_declare(name, durable=True, passive=passive, arguments=dict(arguments))
            case BindingSpec(queue, exchange, routing_key):
                await channel.queue_bind(queue, exchange, routing_key)

    async def _open(self) -> OwnChannel:
        if self._channel is None or not self._channel.is_alive:
            self._channel = await open_channel(self._connection.wire, plain_channel)
        return self._channel


def names(entities: Sequence[Entity]) -> list[str]:
    """Name each entity in the words that people read."""
    return [_called(entity) for entity in entities]


def _called(entity: Entity) -> str:
    return f"{_kind(entity)} {_name(entity)}"


def _kind(entity: Entity) -> str:
    match entity:
        case ExchangeSpec():
            return "exchange"
        case QueueSpec():
            return "queue"
        case BindingSpec():
            return "binding"


def _name(entity: Entity) -> str:
    if isinstance(entity, BindingSpec):
        return f"{entity.exchange} -> {entity.queue} ({entity.routing_key})"
    return entity.name


def _plain(text: str) -> str:
    """Shorten the broker's way of naming a value: "the value '1' of type 'signedint'"."""
    match = re.search(r"'([^']*)'", text)
    return match[1] if match else text

"""`broker-worker publish`."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from broker_worker.cli.output import AsJson, print_json
from broker_worker.cli.session import load_settings, parse_moment
from broker_worker.cli.topology import topology_of
from broker_worker.errors import BrokerWorkerError, ConfigurationError, PublishError
from broker_worker.message import TASK_ID

if TYPE_CHECKING:
    from broker_worker.outgoing import Outgoing
    from broker_worker.settings import Settings

OURS = ("x-", "bw-")
ROUTING = ("cc", "bcc")


@dataclass(frozen=True, slots=True)
class Published:
    """What the broker confirmed."""

    id: str
    name: str
    queue: str


def publish(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The task's name, such as email.send.")],
    *,
    data: Annotated[
        str, typer.Option("--data", "-d", metavar="JSON", help="The payload; @file reads one, @- stdin.")
    ] = "{}",
    queue: Annotated[
        str | None, typer.Option("--queue", "-q", help="The queue; needed where there are several.")
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="The task's id; the same one again is no new task.")
    ] = None,
    deliver_at: Annotated[
        datetime | None,
        typer.Option(
            "--delay",
            "--deliver-at",
            parser=parse_moment,
            metavar="TIME",
            help="Not before: 5m, or a time.",
        ),
    ] = None,
    not_after: Annotated[
        datetime | None,
        typer.Option("--not-after", parser=parse_moment, metavar="TIME", help="Not after: 1h, or a time."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="KEY=VALUE", help="A header; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a task and print its id once the broker has confirmed it.

    Example: `broker-worker publish email.send --data '{"to": "ada@example.org"}' --delay 5m`
    """
    settings = load_settings("amqp_url")
    if not name.strip():
        raise ConfigurationError("the task name is empty")
    queue = queue or _only_queue(settings)
    task_id = id_ or uuid4().hex
    headers: dict[str, object] = {**_headers(header or ()), TASK_ID: task_id}
    if deliver_at is not None:
        headers["deliver-at"] = deliver_at.isoformat()
    if not_after is not None:
        headers["not-after"] = not_after.isoformat()
    outgoing = _outgoing(name, queue, headers=headers, body=_read_body(data))
    asyncio.run(_publish(settings, outgoing))
    published = Published(task_id, name, queue)
    if as_json:
        print_json(published)
    else:
        typer.echo(published.id)


def add_to(app: typer.Typer) -> None:
    """Register."""
    app.command()(publish)


def _only_queue(settings: Settings) -> str:
    if len(settings.queues) > 1:
        raise ConfigurationError(
            f"there are several queues, name one by --queue: {', '.join(settings.queues)}"
        )
    return next(iter(settings.queues))


def _headers(pairs: Sequence[str]) -> dict[str, object]:
    headers: dict[str, object] = {}
    for pair in pairs:
        name, is_pair, value = pair.partition("=")
        if not is_pair or not name:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--header")
        if name.startswith(OURS) or name.lower() in ROUTING:
            raise typer.BadParameter(f"{name!r} is a header that publishers can't set", param_hint="--header")
        headers[name] = value
    return headers


def _read_body(data: str) -> bytes:
    try:
        if data == "@-":
            text = sys.stdin.read()
        elif data.startswith("@"):
            text = Path(data[1:]).read_text(encoding="utf-8")
        else:
            text = data
        json.loads(text)
    except OSError as error:
        raise typer.BadParameter(f"{data[1:]}: {error.strerror}", param_hint="--data") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--data") from error
    return text.encode()


def _outgoing(name: str, queue: str, *, headers: dict[str, object], body: bytes) -> Outgoing:
    from broker_worker.message import Properties
    from broker_worker.outgoing import Kind, Outgoing

    properties = Properties(
        type=name,
        content_type="application/json",
        app_id="broker-worker publish",
        timestamp=datetime.now(UTC).replace(microsecond=0),
        headers=headers,
    )
    return Outgoing(Kind.COPY, queue, properties, body)


async def _publish(settings: Settings, outgoing: Outgoing) -> None:
    from broker_worker.amqp.connection import Link, connected
    from broker_worker.amqp.looking import has_queue
    from broker_worker.amqp.publisher import Publisher
    from broker_worker.amqp.topology import check_queue_name

    topology = topology_of(settings)
    work_queue = topology.work_queue(check_queue_name(outgoing.routing_key))
    async with connected(settings.amqp_url.reveal(), "broker_worker command") as connection:
        # asked for first: the exchange's alternate would confirm a message that leads nowhere
        if not await has_queue(connection, work_queue):
            raise BrokerWorkerError(f"there is no queue {work_queue}: see `broker-worker topology apply`")
    link = Link("publish", settings.amqp_url.reveal, lambda _: None, owner="broker_worker command")
    publisher = Publisher(link, topology, emit=lambda _: None)
    failure: PublishError | None = None
    async with asyncio.TaskGroup() as group:
        group.create_task(publisher.run())
        try:
            await publisher.publish(outgoing)
        except PublishError as error:
            failure = error  # raised outside: a task group wraps what is raised in it
        finally:
            await publisher.close()
    if failure is not None:
        raise failure

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
from broker_worker.errors import ConfigurationError
from broker_worker.message import TaskId

if TYPE_CHECKING:
    from broker_worker.outgoing import Outgoing
    from broker_worker.secret import Secret
    from broker_worker.settings import Settings


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
    outgoing = _outgoing(
        TaskId(queue, name, task_id),
        _read_body(data),
        _headers(header or ()),
        (deliver_at, not_after),
        keys=settings.signing_keys,
    )
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


def _outgoing(
    task: TaskId,
    body: bytes,
    headers: dict[str, object],
    times: tuple[datetime | None, datetime | None],
    *,
    keys: Secret,
) -> Outgoing:
    from broker_worker.client.publishing import task_outgoing
    from broker_worker.signing import Keyring

    deliver_at, not_after = times
    try:
        return task_outgoing(
            task,
            body,
            now=datetime.now(UTC),
            app_id="broker-worker publish",
            deliver_at=deliver_at,
            not_after=not_after,
            headers=headers,
            keyring=Keyring(keys.reveal) if keys.is_set else None,
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


async def _publish(settings: Settings, outgoing: Outgoing) -> None:
    from broker_worker.client.publishing import Publishing

    publishing = Publishing(
        settings.amqp_url.reveal, prefix=settings.prefix, owner="broker_worker command", is_patient=False
    )
    try:
        await publishing.publish(outgoing)
    finally:
        await publishing.close()

"""`broker-worker dead …`: the desk of dead letters."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from broker_worker.cli.commands import FAILED
from broker_worker.cli.output import (
    AsJson,
    Column,
    body_fields,
    fields_of,
    note,
    print_fields,
    print_json,
    print_rows,
)
from broker_worker.cli.session import Actor, Name, Queue, parse_rate, with_database
from broker_worker.failure import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker_worker.ports import Clock
    from broker_worker.store.audit import Verdict
    from broker_worker.store.database import Database
    from broker_worker.store.dead_letters import Desk, KeptLetter, LetterGroup, Selection

DRY_RUN_LIMIT = 1000

commands = typer.Typer(help="List, group, show, replay and discard dead letters.", no_args_is_help=True)

Reason = Annotated[str | None, typer.Option("--reason", "-r", help="Only this reason code.")]
Group = Annotated[
    str | None, typer.Option("--group", "-g", help="Only this group of failures: its id, or a fingerprint.")
]
Ids = Annotated[list[UUID] | None, typer.Argument(metavar="[ID]...", help="Dead letters by id.")]
All = Annotated[bool, typer.Option("--all", help="Every open dead letter.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what it would be done to.")]

COLUMNS: tuple[Column[KeptLetter], ...] = (
    Column("id", lambda letter: letter.id),
    Column("failed", lambda letter: letter.failed_at),
    Column("reason", lambda letter: letter.reason),
    Column("queue", lambda letter: letter.queue),
    Column("name", lambda letter: letter.name),
    Column("task", lambda letter: letter.message_id),
    Column("error", lambda letter: f"{letter.error_type}: {letter.error_message}"),
    Column("group", lambda letter: letter.group),
    Column("resolution", lambda letter: letter.resolution),
)
GROUP_COLUMNS: tuple[Column[LetterGroup], ...] = (
    Column("group", lambda group: group.group),
    Column("count", lambda group: group.count),
    Column("reason", lambda group: group.reason),
    Column("name", lambda group: group.name),
    Column("error", lambda group: group.error_type),
    Column("first seen", lambda group: group.first_seen),
    Column("last seen", lambda group: group.last_seen),
    Column("example", lambda group: group.example),
)


@commands.command("list")
def list_(
    *,
    reason: Reason = None,
    queue: Queue = None,
    name: Name = None,
    group: Group = None,
    with_resolved: Annotated[bool, typer.Option("--all", help="Replayed and discarded ones, too.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most so many.")] = 50,
    before: Annotated[
        UUID | None, typer.Option("--before", help="The next page, as the last one said.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first.

    Example: `broker-worker dead list --reason timeout --queue email`
    """
    from broker_worker.store.dead_letters import Desk, Selection

    selection = Selection(reason, queue, name, group)

    async def find(database: Database) -> list[KeptLetter]:
        desk = Desk(database)
        last = await _known(desk, before) if before else None
        return await desk.list_letters(
            selection,
            with_resolved=with_resolved,
            limit=limit,
            before=(last.failed_at, last.id) if last else None,
        )

    letters = with_database(find)
    print_rows(letters, COLUMNS, as_json=as_json)
    if len(letters) == limit:
        note(f"there may be more: --before {letters[-1].id}")


@commands.command()
def groups(
    *,
    reason: Reason = None,
    queue: Queue = None,
    name: Name = None,
    group: Group = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Count open dead letters that failed in the same way, the most frequent first.

    Example: `broker-worker dead groups`, then `broker-worker dead replay --group 3f2a9c01b7de`
    """
    from broker_worker.store.dead_letters import Desk, Selection

    selection = Selection(reason, queue, name, group)
    found = with_database(lambda database: Desk(database).groups(selection, limit=limit))
    print_rows(found, GROUP_COLUMNS, as_json=as_json)


@commands.command()
def show(
    id_: Annotated[UUID, typer.Argument(metavar="ID", help="The dead letter's id.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show a dead letter with its body and properties.

    Example: `broker-worker dead show 0e6b…`
    """
    from broker_worker.errors import BrokerWorkerError
    from broker_worker.store.dead_letters import Desk

    detail = with_database(lambda database: Desk(database).show(id_))
    if detail is None:
        raise BrokerWorkerError(f"no dead letter {id_}")
    body = body_fields(detail.body)
    if as_json:
        print_json({**fields_of(detail.letter), "properties": detail.properties, **body})
        return
    print_fields(f"dead letter {id_}", fields_of(detail.letter) | {"properties": detail.properties})
    for kind, text in body.items():
        typer.echo(f"{kind}:")
        typer.echo("\n".join(printable(line) for line in text.splitlines()))


@commands.command()
def replay(  # noqa: PLR0913 - an argument for each option
    actor: Actor,
    ids: Ids = None,
    *,
    reason: Reason = None,
    queue: Queue = None,
    name: Name = None,
    group: Group = None,
    everything: All = False,
    rate: Annotated[
        float | None,
        typer.Option("--rate", parser=parse_rate, metavar="N/s", help="At most so many: 10/s, 100/m."),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters on their way again, by id or by what they have in common. Safe to repeat.

    A dead task begins anew with all its attempts. Example:
    `broker-worker dead replay --group 3f2a9c01b7de --rate 10/s`
    """
    from broker_worker.store.dead_letters import Selection

    selection = Selection(reason, queue, name, group)
    _check_choice(ids, selection, everything=everything)
    if dry_run:
        _list_choice(ids, selection, as_json=as_json)
    else:
        _resolve(
            ids,
            selection,
            lambda desk, id_: desk.replay(id_, actor=actor),
            done="replayed",
            rate=rate,
            as_json=as_json,
        )


@commands.command()
def discard(
    actor: Actor,
    ids: Ids = None,
    *,
    reason: Reason = None,
    queue: Queue = None,
    name: Name = None,
    group: Group = None,
    everything: All = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Close dead letters without doing anything about them. They stay readable.

    Example: `broker-worker dead discard --reason malformed --queue email`
    """
    from broker_worker.store.dead_letters import Selection

    selection = Selection(reason, queue, name, group)
    _check_choice(ids, selection, everything=everything)
    if dry_run:
        _list_choice(ids, selection, as_json=as_json)
    else:
        _resolve(
            ids,
            selection,
            lambda desk, id_: desk.discard(id_, actor=actor),
            done="discarded",
            rate=None,
            as_json=as_json,
        )


def _check_choice(ids: list[UUID] | None, selection: Selection, *, everything: bool) -> None:
    """Refuse to guess: nothing said is not everything meant."""
    from broker_worker.store.dead_letters import Selection

    ways = [bool(ids), selection != Selection(), everything]
    if sum(ways) != 1:
        raise typer.BadParameter("name ids, or --reason, --queue, --name, --group, or --all")


def _list_choice(ids: list[UUID] | None, selection: Selection, *, as_json: bool) -> None:
    from broker_worker.store.dead_letters import Desk

    async def find(database: Database) -> tuple[list[KeptLetter], int]:
        desk = Desk(database)
        if ids:
            letters = [await _known(desk, id_) for id_ in ids]
            return letters, len(letters)
        return await desk.list_letters(selection, limit=DRY_RUN_LIMIT), await desk.count(selection)

    letters, count = with_database(find)
    print_rows(letters, COLUMNS, as_json=as_json)
    note(f"{count} dead letters, nothing was changed")
    if not count:
        raise typer.Exit(FAILED)


def _resolve(
    ids: list[UUID] | None,
    selection: Selection,
    resolve: Callable[[Desk, UUID], Awaitable[Verdict]],
    *,
    done: str,
    rate: float | None,
    as_json: bool,
) -> None:
    from broker_worker.clock import SystemClock
    from broker_worker.store.dead_letters import Desk

    async def resolve_each(database: Database) -> tuple[int, int]:
        desk = Desk(database)
        total = len(ids) if ids else await desk.count(selection)
        chosen: AsyncIterator[UUID] = given(tuple(ids)) if ids else desk.select(selection)
        counts = {True: 0, False: 0}
        with _progress(total) as advance:
            async for verdict in resolve_all(
                chosen, lambda id_: resolve(desk, id_), clock=SystemClock(), rate=rate
            ):
                counts[verdict.is_done] += 1
                _print_verdict(verdict, as_json=as_json)
                advance()
        return counts[True], counts[False]

    succeeded, refused = with_database(resolve_each)
    note(f"{done} {succeeded}" + (f", left alone {refused}" if refused else ""))
    if not succeeded:
        raise typer.Exit(FAILED)


async def resolve_all(
    ids: AsyncIterator[UUID],
    resolve: Callable[[UUID], Awaitable[Verdict]],
    *,
    clock: Clock,
    rate: float | None = None,
) -> AsyncIterator[Verdict]:
    """Resolve letters one after the other, at most `rate` of them a second."""
    due = clock.monotonic()
    async for id_ in ids:
        if rate is not None:
            if (wait := due - clock.monotonic()) > 0:
                await clock.sleep(wait)
            due = max(due, clock.monotonic() - 1) + 1 / rate  # a slow stretch is not made up for in a burst
        yield await resolve(id_)


async def given(ids: tuple[UUID, ...]) -> AsyncIterator[UUID]:
    """Go through ids that a person named, each once."""
    for id_ in dict.fromkeys(ids):
        yield id_


def _print_verdict(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        print_json(verdict)
    else:
        typer.echo(printable(f"{verdict.id}: {verdict.detail}"))


async def _known(desk: Desk, id_: UUID) -> KeptLetter:
    from broker_worker.errors import BrokerWorkerError

    detail = await desk.show(id_)
    if detail is None:
        raise BrokerWorkerError(f"no dead letter {id_}")
    return detail.letter


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """Show how far it is, where somebody waits in front of a terminal and the answers go elsewhere."""
    if total < 2 or not sys.stderr.isatty() or sys.stdout.isatty():  # noqa: PLR2004 - one is no progress
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("dead letters", total=total)
        yield lambda: progress.advance(bar)

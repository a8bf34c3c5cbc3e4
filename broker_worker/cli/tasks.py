"""`broker-worker tasks …`: status from the database, and what an operator does to one task."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from broker_worker.cli.bar import changes_shown
from broker_worker.cli.commands import FAILED
from broker_worker.cli.output import (
    AsJson,
    Column,
    fields_of,
    note,
    print_fields,
    print_json,
    print_rows,
)
from broker_worker.cli.session import Actor, Name, Queue, parse_past, parse_span, with_database
from broker_worker.failure import printable

if TYPE_CHECKING:
    from broker_worker.store.audit import Verdict
    from broker_worker.store.database import Database
    from broker_worker.store.listing import TaskPage
    from broker_worker.store.queries import TaskDetail, TaskLookup, TaskSummary

POLL_INTERVAL = 1.0  # seconds
# as TaskState has them, whose import would take 3 ms of each `--help`
STATES = ("queued", "running", "retrying", "succeeded", "dead", "cancelled", "expired")

commands = typer.Typer(help="Look at tasks, watch one, cancel one, erase its data.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The task's id: the publisher's message id.")]
COLUMNS: tuple[Column[TaskSummary], ...] = (
    Column("id", lambda task: task.id),
    Column("name", lambda task: task.name),
    Column("queue", lambda task: task.queue),
    Column("state", lambda task: task.state),
    Column("attempt", lambda task: f"{task.attempt}/{task.max_attempts}"),
    Column("created", lambda task: task.created_at),
    Column("finished", lambda task: task.finished_at),
    Column("reason", lambda task: task.reason),
    Column("error", lambda task: task.error_type),
)


@commands.command("list")
def list_(
    *,
    state: Annotated[
        str | None, typer.Option("--state", "-s", help=f"Only this state: {', '.join(STATES)}.")
    ] = None,
    queue: Queue = None,
    name: Name = None,
    id_: Annotated[str | None, typer.Option("--id", help="Only this id.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--since", parser=parse_past, metavar="TIME", help="Created after: 2h, or a time."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option("--until", parser=parse_past, metavar="TIME", help="Created before: 2h, or a time."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most so many.")] = 50,
    before: Annotated[
        int | None, typer.Option("--before", help="The next page, as the last one said.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first.

    Example: `broker-worker tasks list --state dead --since 2h`
    """
    from broker_worker.store.listing import TaskFilter, list_tasks

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"{state!r} is not one of {', '.join(STATES)}", param_hint="--state")
    where = TaskFilter(state, queue, name, id_, since, until)
    page: TaskPage = with_database(
        lambda database: list_tasks(database, where, limit=limit, before_key=before)
    )
    print_rows(page.tasks, COLUMNS, as_json=as_json)
    if page.before_key is not None:
        where_to = "there may be more" if len(page.tasks) == limit else "only the newest tasks were looked at"
        note(f"{where_to}: --before {page.before_key}")


@commands.command()
def show(id_: Id, *, queue: Queue = None, name: Name = None, as_json: AsJson = False) -> None:
    """Show a task: its state, result, failed attempts, dead letters and what it still owes.

    Example: `broker-worker tasks show order-17`
    """
    from broker_worker.store.interventions import NoSuchTaskError
    from broker_worker.store.queries import TaskLookup, show_task

    lookup = TaskLookup(id_, queue, name)
    details: list[TaskDetail] = with_database(lambda database: show_task(database, lookup))
    if not details:
        raise NoSuchTaskError(lookup)
    for detail in details:
        if as_json:
            print_json(detail)
        else:
            _print_detail(detail)


@commands.command()
def watch(
    id_: Id,
    *,
    queue: Queue = None,
    name: Name = None,
    timeout: Annotated[
        timedelta | None,
        typer.Option("--timeout", parser=parse_span, metavar="DURATION", help="Give up after this time."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print each change of a task until it has ended, its progress too; exit 0 only if it succeeded.

    Example: `broker-worker tasks watch order-17 --timeout 5m`
    """
    from broker_worker.store.queries import TaskLookup

    lookup = TaskLookup(id_, queue, name)

    async def follow(database: Database) -> str | None:
        last = None
        try:
            with changes_shown(as_json=as_json) as show:
                async with asyncio.timeout(timeout.total_seconds() if timeout else None):
                    async for task in changes(database, lookup):
                        last = task.state if task is not None else "unknown"
                        show(task)
        except TimeoutError:
            note(f"gave up: it is still {last}")
        return last

    if with_database(follow) != "succeeded":
        raise typer.Exit(FAILED)


@commands.command()
def cancel(id_: Id, actor: Actor, *, queue: Queue = None, name: Name = None, as_json: AsJson = False) -> None:
    """Cancel a task: at once where it waits; where it runs, its worker is asked to stop.

    Example: `broker-worker tasks cancel order-17 --actor ada`
    """
    from broker_worker.store.interventions import cancel_task
    from broker_worker.store.queries import TaskLookup

    lookup = TaskLookup(id_, queue, name)
    _intervene(lambda database: cancel_task(database, lookup, actor=actor), as_json=as_json)


@commands.command()
def erase(id_: Id, actor: Actor, *, queue: Queue = None, name: Name = None, as_json: AsJson = False) -> None:
    """Delete what a finished task says about people: body, result, error texts, dead letters' content.

    Its row stays, with its state and times. Example: `broker-worker tasks erase order-17 --actor ada`
    """
    from broker_worker.store.interventions import erase_task
    from broker_worker.store.queries import TaskLookup

    lookup = TaskLookup(id_, queue, name)
    _intervene(lambda database: erase_task(database, lookup, actor=actor), as_json=as_json)


async def changes(database: Database, lookup: TaskLookup) -> AsyncIterator[TaskSummary | None]:
    """Look at a task each second and yield what changed; nothing for one that is not known. Ends with it."""
    from broker_worker.message import TaskId
    from broker_worker.store.interventions import AmbiguousTaskError
    from broker_worker.store.queries import show_task
    from broker_worker.task import TERMINAL

    seen: tuple[object, ...] | None = None
    while True:
        details = await show_task(database, lookup)
        if len(details) > 1:
            found = [TaskId(each.task.queue, each.task.name, each.task.id) for each in details]
            raise AmbiguousTaskError(lookup, found)
        task = details[0].task if details else None
        now = _watched(task)
        if now != seen:
            seen = now
            yield task
        if task is not None and task.state in TERMINAL:
            return
        await asyncio.sleep(POLL_INTERVAL)


def _watched(task: TaskSummary | None) -> tuple[object, ...]:
    if task is None:
        return ("unknown",)
    progress = (task.progress, task.progress_note)
    return (task.state, task.attempt, task.epoch, task.is_cancel_requested, *progress)


def _intervene(intervention: Callable[[Database], Awaitable[Verdict]], *, as_json: bool) -> None:
    verdict = with_database(intervention)
    if as_json:
        print_json(verdict)
    else:
        typer.echo(printable(f"{verdict.id}: {verdict.detail}"))
    if not verdict.is_done:
        raise typer.Exit(FAILED)


def _print_detail(detail: TaskDetail) -> None:
    fields = fields_of(detail.task) | {"result": detail.result, "has_payload": detail.has_payload}
    print_fields(f"task {detail.task.id}", fields)
    for attempt in detail.attempts:
        _print_part(f"attempt {attempt.attempt}", attempt)
    for owed in detail.owed:
        _print_part(f"owed {owed.kind}", owed)
    for letter in detail.dead_letters:
        _print_part(f"dead letter {letter.id}", letter)


def _print_part(title: str, part: object) -> None:
    fields = fields_of(part)
    traceback = fields.pop("traceback", None)
    print_fields(title, fields)
    for line in str(traceback).splitlines() if traceback else ():
        typer.echo(f"    {printable(line)}")

"""The changes of a task that is watched: JSON for programs, lines for pipes, lines over a bar for people."""
# ruff: noqa: PLC0415 - rich is slow to import, and only terminals need it

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from broker_worker.cli.output import print_json
from broker_worker.failure import printable

if TYPE_CHECKING:
    from broker_worker.store.queries import TaskSummary

DUMB = frozenset({"dumb", "unknown"})  # terminals that redraw nothing

Show = Callable[["TaskSummary | None"], None]


@contextmanager
def changes_shown(*, as_json: bool) -> Iterator[Show]:
    """Give what shows each change of a task, or that there is none yet; a bar is gone at the end."""
    if as_json:
        yield lambda task: print_json(task if task is not None else {"state": "unknown"})
    elif sys.stdout.isatty() and os.environ.get("TERM") not in DUMB:
        with _on_terminal() as show:
            yield show
    else:
        yield lambda task: typer.echo(", ".join(filter(None, (_line(task), _progress(task)))))


@contextmanager
def _on_terminal() -> Iterator[Show]:
    """Print a line for each change but progress, which is one line under them, redrawn in place."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.text import Text

    note = TextColumn("{task.description}", markup=False)
    console = Console()
    with Progress(
        BarColumn(), TaskProgressColumn(), note, console=console, auto_refresh=False, transient=True
    ) as progress:
        bar = progress.add_task("", total=1, visible=False)
        last = ""

        def show(task: TaskSummary | None) -> None:
            nonlocal last
            line = _line(task)
            if line != last:
                console.print(Text(line))
                last = line
            if task is not None:
                progress.update(
                    bar,
                    completed=task.progress or 0,
                    description=printable(task.progress_note or ""),
                    visible=_is_under_way(task),
                    refresh=True,
                )

        yield show


def _is_under_way(task: TaskSummary) -> bool:
    return task.state == "running" and task.progress is not None


def _line(task: TaskSummary | None) -> str:
    if task is None:
        return "unknown: not received yet, or never sent"
    details = [f"attempt {task.attempt}/{task.max_attempts}"]
    details += [f"reason {task.reason}"] if task.reason else []
    details += [task.error_type] if task.error_type else []
    details += ["asked to stop"] if task.is_cancel_requested else []
    return printable(f"{task.state}: {', '.join(details)}")


def _progress(task: TaskSummary | None) -> str:
    if task is None or not _is_under_way(task):
        return ""
    return printable(f"{task.progress:.0%} {task.progress_note or ''}".rstrip())

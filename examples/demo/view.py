"""What people see: a table that changes while the work is done, then the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.demo.accounting import Totals
from examples.demo.facts import DeadTask, SlowTask
from examples.demo.sinks import Mailbox, Receiver

COLOUR_BY_STATE = {
    "queued": "blue",
    "running": "cyan",
    "retrying": "yellow",
    "succeeded": "green",
    "dead": "red",
    "expired": "magenta",
}
SECONDS_BETWEEN_LINES = 1.0
WIDEST = 44  # characters of a column

States = Mapping[tuple[str, str], int]


class Progress(Protocol):
    """Takes the states as they are `seconds` after the first publish."""

    def show(self, states: States, *, published: int, seconds: float) -> None: ...


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Show a live table on a terminal, a line a second elsewhere."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield _LiveTable(live)


class _LiveTable:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, states: States, *, published: int, seconds: float) -> None:
        self._live.update(states_table(states, published=published, seconds=seconds), refresh=True)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 0.0

    def show(self, states: States, *, published: int, seconds: float) -> None:
        if seconds < self._due:
            return
        self._due = seconds + SECONDS_BETWEEN_LINES
        count_by_state = _by_state(states)
        words = [f"{state} {count_by_state[state]:3}" for state in COLOUR_BY_STATE]
        self._console.print(
            f"{seconds:5.1f} s  published {published or '  …'}  {'  '.join(words)}", highlight=False
        )


def states_table(states: States, *, published: int, seconds: float) -> Table:
    """A row per task name, a column per state."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=True,
        title=f"{seconds:4.1f} s, {f'{published} published' if published else 'publishing'}",
        title_justify="left",
    )
    count_by_state = _by_state(states)
    table.add_column("task", footer="all")
    for state, colour in COLOUR_BY_STATE.items():
        table.add_column(state, footer=str(count_by_state[state]), style=colour, justify="right")
    for name in sorted({name for name, _ in states}):
        counts = [states.get((name, state), 0) for state in COLOUR_BY_STATE]
        table.add_row(name, *(str(count) if count else "·" for count in counts))
    return table


def slowest_table(tasks: Iterable[SlowTask]) -> Table:
    """The tasks that took longest."""
    table = _table("slowest tasks", "task", "id", "attempts", "seconds", "state")
    for task in tasks:
        _, name, task_id = task.identity
        table.add_row(name, task_id, str(task.attempts), f"{task.seconds:.1f}", task.state)
    return table


def letters_table(letters: Iterable[DeadTask]) -> Table:
    """Every dead letter with its reason."""
    table = _table("dead letters", "reason", "queue", "task", "id", "attempts", "error")
    for letter in letters:
        queue, name, task_id = letter.identity
        error = Text(" ".join(letter.error.split()))  # as it is: brackets are no markup
        table.add_row(letter.reason, queue, name or "?", task_id or "?", str(letter.attempts), error)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, max_width=WIDEST)
    return table


def show_outside(console: Console, mailbox: Mailbox, receiver: Receiver) -> None:
    """Print what the outside world saw."""
    mails, calls = sum(mailbox.count_by_id.values()), sum(receiver.count_by_id.values())
    console.print(
        f"{mails} e-mails arrived; {calls} webhooks, after {receiver.refused} answers of 503", highlight=False
    )


def show_result(console: Console, totals: Totals, problems: list[str]) -> None:
    """Print the equations, then what does not add up."""
    for line in totals.lines():
        console.print(line, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"! {problem}", style="red", highlight=False, markup=False, soft_wrap=True)


def _by_state(states: States) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, state), count in states.items():
        found[state] += count
    return found

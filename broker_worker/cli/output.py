"""How commands answer: tables for people, tab-separated text for pipes, JSON for programs."""
# ruff: noqa: PLC0415 - rich is slow to import, and only tables need it

from __future__ import annotations

import dataclasses
import json
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Generic, TypeVar

import typer

from broker_worker.failure import printable

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
NOTHING = "-"


@dataclass(frozen=True)  # no slots: Column[T](...) fails with them before Python 3.12
class Column(Generic[T]):
    """One column of a table for people."""

    title: str
    value: Callable[[T], object]


def print_rows(rows: Iterable[T], columns: Sequence[Column[T]], *, as_json: bool) -> None:
    """Print rows; as JSON with all their fields, else with the `columns` that people want."""
    if as_json:
        for row in rows:
            print_json(row)
    elif sys.stdout.isatty():
        _print_table(rows, columns)
    else:
        typer.echo("\t".join(column.title for column in columns))
        for row in rows:
            typer.echo("\t".join(shown(column.value(row)) for column in columns))


def print_json(value: object) -> None:
    """Print one value as one line of JSON, in which nothing steers a terminal or ends the line."""
    line = json.dumps(jsonable(value), ensure_ascii=False)
    typer.echo(line if line.isprintable() else "".join(map(_json_escaped, line)))


def print_fields(title: str, fields: Mapping[str, object]) -> None:
    """Print one thing, a line for each of its fields that has a value."""
    typer.echo(printable(title))
    for name, value in fields.items():
        if value is not None:
            typer.echo(f"  {name}: {shown(value)}")


def note(line: str) -> None:
    """Say something beside the answer, where a pipe does not take it for data."""
    typer.echo(line, err=True)


def fields_of(value: object) -> dict[str, object]:
    """Name the fields of a dataclass and their values."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is not a dataclass")
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


def jsonable(value: object) -> object:
    """Turn a value of this package into what JSON can hold; the names of fields are the keys."""
    if dataclasses.is_dataclass(value):
        return {name: jsonable(each) for name, each in fields_of(value).items()}
    if isinstance(value, Mapping):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return _text(value)


def shown(value: object) -> str:
    """Write a value in one line for a person; what could steer a terminal is escaped."""
    if value is None:
        return NOTHING
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, float):
        return f"{value:.3g}"
    return printable(str(value) if isinstance(value, str | int) else _text(value))


def _json_escaped(character: str) -> str:
    """Escape what `json.dumps` leaves as it is: all of it is within a text, where it may be escaped."""
    return character if character.isprintable() else json.dumps(character)[1:-1]


def body_fields(body: bytes) -> dict[str, str]:
    """Put a body into JSON: as text where it is that, else in base64."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": b64encode(body).decode()}


def _text(value: object) -> str:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat()
        case timedelta():
            return f"{value.total_seconds():g}s"
        case bytes():
            return b64encode(value).decode()
        case _:
            return str(value)


def _print_table(rows: Iterable[T], columns: Sequence[Column[T]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(column.value(row))) for column in columns))  # Text: no markup in values
    Console().print(table)

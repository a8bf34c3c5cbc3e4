"""How answers are written."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import typer

from broker_worker.cli.checks import Finding, _print
from broker_worker.cli.output import Column, body_fields, print_fields, print_rows, shown
from broker_worker.cli.session import parse_moment, parse_past, parse_rate
from broker_worker.cli.tasks import _print_part


@dataclass(frozen=True, slots=True)
class Row:
    id: UUID
    at: datetime | None
    note: str


@dataclass(frozen=True, slots=True)
class Traced:
    traceback: str


ROW = Row(UUID(int=7), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "a\tb\x1b[31m")
COLUMNS = (Column[Row]("at", lambda row: row.at), Column[Row]("note", lambda row: row.note))


def test_json_has_every_field_on_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([ROW, ROW], COLUMNS, as_json=True)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (
        lines
        == [
            {
                "id": "00000000-0000-0000-0000-000000000007",
                "at": "2026-01-02T03:04:05+00:00",
                "note": "a\tb\x1b[31m",
            }
        ]
        * 2
    )


def test_a_pipe_gets_a_header_and_tabs_and_nothing_that_steers_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_rows([ROW], COLUMNS, as_json=False)

    assert capsys.readouterr().out == "at\tnote\n2026-01-02 03:04:05Z\ta\\tb\\x1b[31m\n"


def test_json_is_one_line_in_which_nothing_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    note = "ä€😀\x7f\x85\x9b31m\u2028\u202e\ud800"

    print_rows([replace(ROW, note=note)], COLUMNS, as_json=True)

    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert "ä€😀" in line
    assert json.loads(line)["note"] == note


def test_a_title_and_a_traceback_steer_no_terminal_either(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields("task \x1b]0;title\x07\n", {})
    _print_part("attempt 1", Traced("Error: \x1b[2J\x9b31m\u2028"))

    assert capsys.readouterr().out == ("task \\x1b]0;title\\x07\\n\nattempt 1\n    Error: \\x1b[2J\\x9b31m\n")


def test_nothing_is_a_dash() -> None:
    assert shown(None) == "-"


def test_a_body_is_text_where_it_can_be() -> None:
    assert body_fields(b'{"a": 1}') == {"body": '{"a": 1}'}
    assert body_fields(b"\xff") == {"body_base64": "/w=="}


@pytest.mark.parametrize(("text", "rate"), [("10", 10), ("10/s", 10), ("120/m", 2), ("1800/h", 0.5)])
def test_a_rate_is_so_many_a_second_a_minute_or_an_hour(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


def test_a_moment_is_a_duration_from_now_or_a_time() -> None:
    soon = parse_moment("5m") - datetime.now(UTC)
    before = datetime.now(UTC) - parse_past("5m")

    assert timedelta(minutes=4, seconds=50) < soon <= timedelta(minutes=5)
    assert timedelta(minutes=4, seconds=50) < before <= timedelta(minutes=5)
    assert parse_moment("2026-01-02T03:04:05") == ROW.at


def test_what_is_no_moment_is_said_to_be_so() -> None:
    with pytest.raises(typer.BadParameter, match="neither a duration"):
        parse_moment("tomorrow")


def test_what_a_server_said_reaches_the_terminal_without_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    _print(Finding("amqp", ok=False, detail="closed: \x1b]0;owned\x07\nfor \x1b[2J good"), as_json=False)

    assert "\x1b" not in capsys.readouterr().out

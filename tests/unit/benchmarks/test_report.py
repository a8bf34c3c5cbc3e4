"""The report in latest.json and in docs/benchmarks.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Figure, Report, Row, read, write
from benchmarks.tables import BEGIN, END, inserted, markdown, plain

FAST = Row(
    title="Fast",
    persists="nothing",
    setting="prefetch 100",
    messages=20_000,
    rounds=[900.0, 1_000.0, 1_100.0],
    median=1_000.0,
    ratio=2.0,
    processor_us=85.0,
    compared="broker_worker / fast",
    compared_ratio=0.5,
    goal=1.0,
)
REPORT = Report(
    when="2030-01-31T12:00:00+00:00",
    scale="full",
    machine={"cores": "2"},
    versions={"python": "3.13.0"},
    contestants={"fast": FAST},
    measures=[Figure("idle", 0.5, "%", goal=1.0, is_upper_bound=True, note="of a core")],
    failures={"growth": "no room"},
)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "results" / "latest.json")

    assert read(tmp_path / "results" / "latest.json") == REPORT


def test_the_file_says_of_each_contestant_its_rounds_its_median_and_its_ratio(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "latest.json")

    row = json.loads((tmp_path / "latest.json").read_text())["contestants"]["fast"]

    assert (row["rounds"], row["median"], row["ratio"]) == ([900.0, 1000.0, 1100.0], 1000.0, 2.0)
    assert (row["compared_ratio"], row["goal"], row["reached"]) == (0.5, 1.0, False)


def test_the_file_says_of_each_measure_its_value_its_unit_and_its_goal(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "latest.json")

    figure = json.loads((tmp_path / "latest.json").read_text())["measures"]["idle"]

    assert (figure["value"], figure["unit"], figure["goal"], figure["reached"]) == (0.5, "%", 1.0, True)


@pytest.mark.parametrize(
    ("value", "goal", "is_upper_bound", "reached"),
    [
        (1.0, 1.0, False, True),
        (0.9, 1.0, False, False),
        (1.0, 1.0, True, True),
        (1.1, 1.0, True, False),
        (1.1, None, False, None),
    ],
)
def test_a_goal_is_the_least_or_the_most(
    value: float, goal: float | None, is_upper_bound: bool, reached: bool | None
) -> None:
    figure = Figure("any", value, "ratio", goal=goal, is_upper_bound=is_upper_bound)

    assert figure.is_reached is reached


def test_a_goal_that_is_missed_is_said_to_be() -> None:
    assert "| broker_worker / fast | 0.50 | ≥ 1 | missed |" in markdown(REPORT)


def test_a_measure_that_failed_is_not_left_out() -> None:
    assert "growth" in plain(REPORT)
    assert "no room" in plain(REPORT)


def test_the_results_replace_what_is_between_the_marks_and_nothing_else() -> None:
    document = f"# Head\n\n{BEGIN}\nold\n\n{END}\nThe rest.\n"

    once = inserted(document, "new\n")

    assert once == f"# Head\n\n{BEGIN}\nnew\n\n{END}\nThe rest.\n"
    assert inserted(once, "new\n") == once

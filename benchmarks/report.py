"""What the benchmarks print and write: the table, latest.json, and markdown for docs/benchmarks.md.

`python -m benchmarks.report` prints the markdown of the last benchmarks/results/latest.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LATEST = Path(__file__).with_name("results") / "latest.json"
REFERENCE = "aio_pika_loop"
ALIGNED_LEFT = 3  # columns of the table; numbers follow


@dataclass(frozen=True, slots=True)
class Figure:
    """One value that a further measure found."""

    name: str  # of letters, digits and _: the key in latest.json
    value: float
    unit: str  # "ratio", "messages/s", "ms", "s", "MiB", "bytes", "MB/s", "%"
    goal: float | None = None  # the least that is to be reached, or the most that is allowed
    is_upper_bound: bool = False  # whether the goal is the most that is allowed
    note: str = ""  # one line for people

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is reached, None where there is none."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.is_upper_bound else self.value >= self.goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contestant of the table. Rates are messages per second."""

    title: str
    persists: str
    setting: str
    messages: int  # in each round
    rounds: Sequence[float]  # the rate of each
    median: float
    ratio: float | None  # of the median to that of `REFERENCE`; None where that did not run
    processor_us: float  # processor time of its own processes per message, the median, in microseconds
    compared: str = ""  # the two rows whose medians are compared: "broker_worker / faststream"
    compared_ratio: float | None = None  # None where one of them did not run
    goal: float | None = None  # the least `compared_ratio`
    failure: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is reached, None where there is none or nothing to compare."""
        if self.goal is None or self.compared_ratio is None:
            return None
        return self.compared_ratio >= self.goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one run of the benchmarks found."""

    when: str  # ISO 8601
    scale: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    contestants: Mapping[str, Row]
    measures: Sequence[Figure]

    def as_document(self) -> dict[str, object]:
        """Return what latest.json holds."""
        return {
            "when": self.when,
            "scale": self.scale,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "reference": REFERENCE,
            "contestants": {
                name: {**asdict(row), "reached": row.is_reached} for name, row in self.contestants.items()
            },
            "measures": {
                figure.name: {
                    "value": figure.value,
                    "unit": figure.unit,
                    "goal": figure.goal,
                    "is_upper_bound": figure.is_upper_bound,
                    "reached": figure.is_reached,
                    "note": figure.note,
                }
                for figure in self.measures
            },
        }


def write(report: Report, path: Path) -> None:
    """Write it as JSON."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(report.as_document(), indent=2, ensure_ascii=False) + "\n")


def read(path: Path) -> Report:
    """Read what `write` wrote."""
    document = json.loads(path.read_text())
    return Report(
        when=document["when"],
        scale=document["scale"],
        machine=document["machine"],
        versions=document["versions"],
        contestants={name: Row(**_without(row, "reached")) for name, row in document["contestants"].items()},
        measures=[
            Figure(name=name, **_without(figure, "reached")) for name, figure in document["measures"].items()
        ],
    )


def plain(report: Report) -> str:
    """Lay the report out for a terminal."""
    return "\n\n".join(_aligned(table) for table in _tables(report))


def markdown(report: Report) -> str:
    """Lay the report out as tables in markdown."""
    return "\n\n".join(_piped(table) for table in _tables(report))


Table = list[list[str]]


def _tables(report: Report) -> list[Table]:
    throughput = [
        [
            "contestant",
            "setting",
            "persists",
            "messages/s",
            "lowest",
            "highest",
            "ratio",
            "µs each",
            "compared",
            "is",
            "goal",
        ],
        *(_contestant(name, row) for name, row in report.contestants.items()),
    ]
    measures = [["measure", "note", "", "value", "goal"], *(_measure(figure) for figure in report.measures)]
    return [table for table in (throughput, measures) if len(table) > 1]


def _contestant(name: str, row: Row) -> list[str]:
    if row.failure or not row.rounds:
        return [name, row.setting, row.persists, "failed", *[""] * 7]
    return [
        name,
        row.setting,
        row.persists,
        f"{row.median:,.0f}",
        f"{min(row.rounds):,.0f}",
        f"{max(row.rounds):,.0f}",
        _ratio(row.ratio),
        f"{row.processor_us:,.0f}",
        row.compared,
        _ratio(row.compared_ratio),
        "" if row.goal is None else _judged(f"≥ {row.goal:g}", reached=row.is_reached),
    ]


def _measure(figure: Figure) -> list[str]:
    bound = "≤" if figure.is_upper_bound else "≥"
    goal = "" if figure.goal is None else _judged(f"{bound} {figure.goal:g}", reached=figure.is_reached)
    unit = "" if figure.unit == "ratio" else f" {figure.unit}"
    return [figure.name, figure.note, "", f"{figure.value:,.4g}{unit}", goal]


def _judged(goal: str, *, reached: bool | None) -> str:
    return goal if reached is None else f"{goal} {'✓' if reached else '✗'}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _aligned(table: Table) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < ALIGNED_LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def _piped(table: Table) -> str:
    head, *rows = table
    line = ["---" if column < ALIGNED_LEFT else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, line, *rows))


def _without(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


if __name__ == "__main__":
    sys.stdout.write(markdown(read(LATEST)) + "\n")

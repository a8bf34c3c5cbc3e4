"""The tables that people read: on the terminal, and in docs/benchmarks.md.

`python -m benchmarks.tables` writes those of benchmarks/results/latest.json into docs/benchmarks.md, between
the two marks there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import LATEST, Figure, Report, Row, read

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells under a head. The first `texts` columns are text, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int


def plain(report: Report) -> str:
    """Lay the report out for a terminal."""
    return "\n\n".join(_aligned(table) for table in tables(report))


def markdown(report: Report) -> str:
    """Lay the report out for a document: what it ran on, then the tables."""
    ran_on = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items())
    about = f"`{report.scale}`, {report.when}. Machine: {ran_on}. Versions: {versions}."
    return "\n\n".join([about, *(_piped(table) for table in tables(report))]) + "\n"


def inserted(document: str, results: str) -> str:
    """Return the document with `results` in place of what is between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{results}\n{END}{after}"


def tables(report: Report) -> list[Table]:
    """Return the tables that have rows: throughput, what is compared, further measures."""
    throughput = Table(
        [
            "contestant",
            "setting",
            "persists",
            "messages",
            "per second",
            "lowest",
            "highest",
            "ratio",
            "µs each",
        ],
        [_contestant(name, row) for name, row in report.contestants.items()],
        texts=3,
    )
    compared = Table(
        ["compared", "ratio", "goal", ""],
        [_compared(row) for row in report.contestants.values() if row.compared],
        texts=1,
    )
    measures = Table(
        ["measure", "note", "value", "goal", ""],
        [
            *(_measure(figure) for figure in report.measures),
            *([name, failure, "failed", "", ""] for name, failure in report.failures.items()),
        ],
        texts=2,
    )
    return [table for table in (throughput, compared, measures) if table.rows]


def _contestant(name: str, row: Row) -> list[str]:
    texts = [name, row.setting, row.persists, f"{row.messages:,}"]
    if not row.rounds:
        return [*texts, "failed", "", "", "", ""]
    rates = [f"{rate:,.0f}" for rate in (row.median, min(row.rounds), max(row.rounds))]
    return [*texts, *rates, _ratio(row.ratio), f"{row.processor_us:,.0f}"]


def _compared(row: Row) -> list[str]:
    goal = "" if row.goal is None else f"≥ {row.goal:g}"
    return [row.compared, _ratio(row.compared_ratio), goal, _judged(reached=row.is_reached)]


def _measure(figure: Figure) -> list[str]:
    value = f"{figure.value:,.4g}{'' if figure.unit == 'ratio' else f' {figure.unit}'}"
    goal = "" if figure.goal is None else f"{'≤' if figure.is_upper_bound else '≥'} {figure.goal:g}"
    return [figure.name, figure.note, value, goal, _judged(reached=figure.is_reached)]


def _judged(*, reached: bool | None) -> str:
    return "" if reached is None else "reached" if reached else "missed"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _aligned(table: Table) -> str:
    lines = [table.head, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < table.texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _piped(table: Table) -> str:
    rule = ["---" if column < table.texts else "---:" for column in range(len(table.head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (table.head, rule, *table.rows))


if __name__ == "__main__":
    DOCUMENT.write_text(inserted(DOCUMENT.read_text(), markdown(read(LATEST))))

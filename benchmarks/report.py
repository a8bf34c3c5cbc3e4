"""What one run of the benchmarks found, and benchmarks/results/latest.json, which holds the last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LATEST = Path(__file__).with_name("results") / "latest.json"
REFERENCE = "aio_pika_loop"


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
    failures: Mapping[str, str] = field(default_factory=dict)  # of measures: why they have no figures

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
            "failures": dict(self.failures),
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
        failures=document["failures"],
    )


def _without(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}

"""What the benchmarks print and write: figures of the further measures, the table, latest.json, markdown."""

from __future__ import annotations

from dataclasses import dataclass


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

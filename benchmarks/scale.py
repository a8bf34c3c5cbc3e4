"""How much work one run of the benchmarks is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of everything: `full` is what is published, `quick` shows a trend, `smoke` that it works."""

    name: Literal["full", "quick", "smoke"]
    messages: int  # of one run of a contestant, before its share
    rounds: int  # in how many rounds each contestant runs once

    def pick(self, *, full: T, quick: T, smoke: T) -> T:
        """Return what a measure wants at this scale."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.name]


FULL = Scale("full", messages=20_000, rounds=4)  # with the measures 20 minutes
QUICK = Scale("quick", messages=3_000, rounds=1)  # 2 minutes
SMOKE = Scale("smoke", messages=2_000, rounds=1)

"""Whether a seed kept every promise, and what to do with one that did not."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.faults.checker import check, report
from tests.faults.verdict import Verdict
from tests.simulation.simulation import Mutant, Simulated, simulate

COLLECTED_AFTER = 10  # seeds
UNEXPECTED = "UNEXPECTED "  # begins what a daemon says that it should never have to


@dataclass(slots=True)
class Judged:
    """One seed, and what is wrong with it."""

    simulated: Simulated
    verdict: Verdict
    problems: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return self.simulated.seed

    def witnesses(self) -> Iterator[str]:
        """The problems, and the timelines of the tasks that they are about."""
        yield from self.problems
        yield from report(self.simulated.recording, self.verdict)


def judge(seed: int, *, mutant: Mutant | None = None) -> Judged:
    """Simulate a seed and judge it."""
    simulated = simulate(seed, mutant=mutant)
    verdict = check(simulated.recording)
    problems = [
        f"{code} {violation.text}"
        for code in verdict.violated
        for violation in verdict.findings[code].violations
    ]
    problems += [
        f"{line.process}: {line.line}"
        for line in simulated.recording.logs
        if line.line.startswith(UNEXPECTED)
    ]
    if simulated.stuck:
        problems.append(simulated.stuck)
    return Judged(simulated, verdict, problems)


@dataclass(slots=True)
class Tally:
    """What came of many seeds."""

    seeds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    failing: dict[int, list[str]] = field(default_factory=dict)

    def add(self, judged: Judged) -> None:
        self.seeds += 1
        if self.seeds % COLLECTED_AFTER == 0:
            gc.collect()  # which is kept out of a simulation, and would come too rarely between two
        self.faults += judged.simulated.counts
        self.done += judged.simulated.done
        for code, finding in judged.verdict.findings.items():
            self.checked[code] += finding.checked
            self.violations[code] += len(finding.violations)
        if judged.problems:
            self.failing[judged.seed] = judged.problems

    def written(self) -> dict[str, Any]:
        """For a file of results."""
        return {
            "seeds": self.seeds,
            "failing": {str(seed): problems[:5] for seed, problems in self.failing.items()},
            "faults": dict(sorted(self.faults.items())),
            "done": dict(sorted(self.done.items())),
            "invariants": {
                code: {"checked": count, "violations": self.violations[code]}
                for code, count in sorted(self.checked.items())
            },
        }

    def dump(self) -> str:
        return json.dumps(self.written(), indent=2)


def tally(seeds: Iterable[int]) -> Tally:
    """Judge many seeds."""
    total = Tally()
    for seed in seeds:
        total.add(judge(seed))
    return total

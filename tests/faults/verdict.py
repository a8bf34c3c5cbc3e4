"""What the checker says: for each invariant how much was looked at, and what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.facts import Facts
from tests.faults.records import TaskKey

WITNESSES = 5  # of which the timelines are shown


@dataclass(frozen=True, slots=True)
class Violation:
    """One place where a recording breaks an invariant."""

    text: str
    task: TaskKey | None = None  # whose timeline shows it
    at: float = 0.0


@dataclass(slots=True)
class Finding:
    """What one invariant found. An invariant that looked at nothing has proved nothing: `checked` says it."""

    checked: int = 0
    violations: list[Violation] = field(default_factory=list)

    def violate(self, text: str, task: TaskKey | None = None, at: float = 0.0) -> None:
        self.violations.append(Violation(text, task, at))


@dataclass(frozen=True, slots=True)
class Invariant:
    """A rule: its code, its name, and what looks for what breaks it.

    `files` are those that it can't judge without. A recording that is not whole may lack them.
    """

    code: str
    name: str
    check: Callable[[Facts, Finding], None]
    files: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings of one recording."""

    findings: dict[str, Finding]  # by code
    unjudged: tuple[str, ...]  # codes of which a file is missing
    figures: dict[str, Any]

    @property
    def is_clean(self) -> bool:
        return not self.violated

    @property
    def violated(self) -> list[str]:
        """The codes of the invariants that are broken."""
        return [code for code, finding in self.findings.items() if finding.violations]

    @property
    def violations(self) -> list[Violation]:
        return [each for finding in self.findings.values() for each in finding.violations]

    def witnesses(self, code: str) -> list[Violation]:
        """The first of what breaks an invariant."""
        return sorted(self.findings[code].violations, key=lambda each: each.at)[:WITNESSES]

    def summary(self) -> dict[str, Any]:
        """For a file of results."""
        counts = {
            code: {"checked": finding.checked, "violations": len(finding.violations)}
            for code, finding in self.findings.items()
        }
        return {"invariants": counts, "unjudged": list(self.unjudged), "figures": self.figures}

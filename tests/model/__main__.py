"""Explore the protocol: `python -m tests.model`, and nothing else is needed."""

from __future__ import annotations

import sys

from tests.model.cases import MUTANTS, SCOPES
from tests.model.explorer import explore
from tests.model.moves import Case


def main() -> int:
    """Print what was explored; the number of surprises."""
    surprises, states, seconds = 0, 0, 0.0
    for scope in SCOPES:
        result = explore(Case(scope))
        states, seconds = states + result.states, seconds + result.seconds
        verdict = result.broken or "holds"
        _say(f"{scope.name:42} {result.states:>9,} states  {verdict:12} {result.seconds:5.1f} s")
        if result.broken is not None:
            surprises += 1
            _say("    " + "\n    ".join(result.trace))
    _say(f"{'all worlds':42} {states:>9,} states  {'':12} {seconds:5.1f} s")
    for mutant in MUTANTS:
        result = explore(Case(mutant.scope, mutant.rules))
        verdict = f"killed by {result.broken!r}" if result.broken else "survives"
        _say(f"without {mutant.name:34} {result.states:>9,} states  {verdict}")
        surprises += result.broken != mutant.killed_by
    return surprises


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

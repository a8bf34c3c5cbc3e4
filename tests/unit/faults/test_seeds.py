"""The simulation's findings, from several programs."""

from __future__ import annotations

from tests.faults.seeds import added, simulate


def test_findings_of_two_programs_are_put_together() -> None:
    one = {"seeds": 2, "failing": {"1": ["I1"]}, "faults": {"crash": 3}}
    other = {"seeds": 3, "failing": {}, "faults": {"crash": 1, "cancel": 2}}

    assert added(one, other) == {"seeds": 5, "failing": {"1": ["I1"]}, "faults": {"crash": 4, "cancel": 2}}


def test_no_seeds_find_nothing() -> None:
    assert simulate(1, 0) is None

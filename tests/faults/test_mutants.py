"""The checker kills every mutant of the daemon, by the invariant that is meant for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.checker import check
from tests.faults.mutants.catalogue import MUTANTS
from tests.faults.mutants.mutant import Mutant
from tests.faults.mutants.on_servers import MUTANTS as ON_SERVERS
from tests.simulation.simulation import simulate

pytestmark = pytest.mark.timeout(300)  # on a machine that has other things to do

SEEDS = 150  # within which a mutant has to be killed; most need one or two
by_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))


def code() -> dict[tuple[str, str], object]:
    """What every module and every class of the daemon, and of its simulation, is made of."""
    found: dict[tuple[str, str], object] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("broker_worker.", "tests.simulation.")):
            for name, value in vars(module).items():
                found[module_name, name] = value
                if isinstance(value, type) and value.__module__ == module_name:
                    found |= {(f"{module_name}.{name}", each): part for each, part in vars(value).items()}
    return found


def changed(before: dict[tuple[str, str], object]) -> list[tuple[str, str]]:
    after = code()
    return [name for name, value in before.items() if after.get(name) is not value]


@by_mutant
def test_the_checker_kills(mutant: Mutant) -> None:
    for seed in range(SEEDS):
        verdict = check(simulate(seed, mutant=mutant.patch).recording)
        if mutant.killed_by in verdict.violated:
            assert check(simulate(seed).recording).is_clean, "it is the mutant that the checker tells"
            return
    pytest.fail(f"{mutant.mistake}: {SEEDS} seeds, and {mutant.killed_by} did not tell")


@by_mutant
def test_a_mutant_changes_the_code_and_leaves_it_as_it_was(mutant: Mutant) -> None:
    before = code()
    with mutant.patch():
        assert changed(before)

    assert not changed(before)


def test_no_two_mutants_have_one_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


@pytest.mark.parametrize("mutants", [MUTANTS, ON_SERVERS])
def test_the_documentation_names_every_mutant_and_what_kills_it(mutants: Sequence[Mutant]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()

    assert [each.name for each in mutants if not is_listed(each, page)] == []


def is_listed(mutant: Mutant, page: str) -> bool:
    """Whether a line of the table has it; one that is in both lists may say its mistake in other words."""
    return any(
        line.startswith(f"| {mutant.name} |") and f"| {mutant.killed_by} |" in line
        for line in page.splitlines()
    )

"""The protocol, explored whole: its properties hold, and each would show that a rule is broken."""

from __future__ import annotations

import dataclasses

import pytest

from broker_worker.step import Step, step_of_loss, step_of_rescue
from broker_worker.task import TaskState
from tests.model.cases import MUTANTS, SCOPES, Mutant
from tests.model.code import ANOTHER, change_of, message, task_of
from tests.model.explorer import explore
from tests.model.moves import Case, Scope
from tests.model.properties import PROPERTIES, broken_in, sight_of
from tests.model.rules import Rules
from tests.model.state import Mark, Messages, Row, Worker

RUNNING = Row(
    TaskState.RUNNING,
    attempt=1,
    has_body=True,
    is_cancel_requested=False,
    mark=Mark.NONE,
    interruptions=0,
    poisonings=0,
    starts=1,
    effects=0,
)


@pytest.mark.timeout(600)  # seconds of a busy machine for ten of a processor
@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: scope.name)
def test_every_property_holds_in_every_state(scope: Scope) -> None:
    result = explore(Case(scope))

    assert result.broken is None, "\n".join((result.broken, *result.trace))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_breaks_its_property(mutant: Mutant) -> None:
    result = explore(Case(mutant.scope, mutant.rules))

    assert result.broken == mutant.killed_by


def test_every_rule_is_broken_by_a_mutant() -> None:
    assert [mutant.name for mutant in MUTANTS] == [field.name for field in dataclasses.fields(Rules)]


def test_what_shows_a_broken_rule_is_a_property_of_the_list() -> None:
    assert {mutant.killed_by for mutant in MUTANTS} <= PROPERTIES.keys()


# --- what no mutant breaks alone: the properties themselves ---------------------------

LETTERLESS = dataclasses.replace(step_of_loss(task_of(RUNNING, worker=ANOTHER)), letter=None)
RECORDLESS = dataclasses.replace(step_of_rescue(task_of(RUNNING, worker=ANOTHER), message(1)), record=None)


@pytest.mark.parametrize(("step", "broken"), [(LETTERLESS, "letter"), (RECORDLESS, "record")])
def test_a_step_is_judged_alone(step: Step, broken: str) -> None:
    assert change_of(RUNNING, step).breaks == (broken,)


@pytest.mark.parametrize("effects", [0, 2])
def test_a_success_without_its_effects_or_with_them_twice_is_seen(effects: int) -> None:
    row = RUNNING._replace(state=TaskState.SUCCEEDED, effects=effects)

    assert list(broken_in(row, Messages(), sight_of([Worker()]))) == ["effects"]

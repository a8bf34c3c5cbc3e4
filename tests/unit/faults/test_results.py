"""What a run comes to, for the file and for the documentation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.faults.checker import check
from tests.faults.records import About, Fault, FinalTask, Recording, TaskChange
from tests.faults.results import LATEST, innocent_deaths, summarise, tables
from tests.faults.runner import Plan, Ran

PLAN = Plan(seed=7, messages=10, faults=(), seconds=60.0)


def a_task(name: str, id_: str, state: str) -> FinalTask:
    return FinalTask(key=1, queue="q", name=name, id=id_, state=state, attempt=1, max_attempts=3, epoch=1)


def ran(*records: FinalTask | Fault | TaskChange, has_quiet_end: bool = True) -> Ran:
    recording = Recording(about=About(has_quiet_end=has_quiet_end, is_whole=False))
    for record in records:
        recording.add(record)
    return Ran(recording, check(recording), {"worker_kill": 3}, {"queue_delete": 1})


def test_a_task_that_had_to_succeed_and_is_dead_is_an_innocent_one() -> None:
    recording = ran(
        a_task("transfer", "transfer-1", "dead"),
        a_task("plain", "plain-2", "succeeded"),
        a_task("plain", "hostile-3", "dead"),
        a_task("fails", "fails-4", "dead"),
    ).recording

    assert innocent_deaths(recording) == ["transfer-1: dead "]


def test_targets_are_met_when_nothing_was_found() -> None:
    results = summarise(PLAN, ran(), minutes=1, simulation={"seeds": 5, "failing": {}, "exit_code": 0})

    assert results.is_met


def test_a_run_that_did_not_become_quiet_a_failing_seed_and_an_innocent_death_are_misses() -> None:
    failing = {"seeds": 5, "failing": {"3": ["I1"]}, "exit_code": 1}

    missed = [
        summarise(PLAN, ran(has_quiet_end=False), minutes=1, simulation=None),
        summarise(PLAN, ran(), minutes=1, simulation=failing),
        summarise(PLAN, ran(a_task("slow", "slow-1", "dead")), minutes=1, simulation=None),
    ]

    assert [results.is_met for results in missed] == [False, False, False]


def test_an_hour_needs_its_number_of_faults_and_of_kinds() -> None:
    few = ran()
    many = replace(few, done={f"kind {number}": 25 for number in range(20)})

    missed = [
        [
            name
            for name, is_met in summarise(PLAN, each, minutes=60, simulation=None).facts["targets"].items()
            if not is_met
        ]
        for each in (few, many)
    ]

    assert missed == [["500 faults or more", "20 kinds or more, each 10 times or more"], []]


def test_the_tables_say_how_often_each_kind_was_done_and_what_was_missed() -> None:
    results = summarise(PLAN, ran(has_quiet_end=False), minutes=1, simulation=None)

    lines = list(tables(results.facts))

    assert any("| `worker_kill` | 3 |" in line for line in lines)
    assert "| targets that were missed | became quiet |" in lines


def test_every_line_of_the_last_run_in_the_documentation_is_of_its_file() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text()

    assert [line for line in tables(json.loads(LATEST.read_text())) if line not in text] == []

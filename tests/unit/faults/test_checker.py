"""The checker: a run that is right passes, and each kind of wrong is told by its own invariant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.faults.checker import INVARIANTS, check, main
from tests.faults.records import Record, Recording
from tests.support.stories import everything


def test_a_run_in_which_everything_is_right_breaks_nothing() -> None:
    verdict = check(everything().end())

    assert verdict.violations == []
    assert verdict.is_clean


def test_every_invariant_that_such_a_run_is_about_looked_at_something() -> None:
    verdict = check(everything().end())

    looked = {code for code, finding in verdict.findings.items() if finding.checked}
    assert looked >= {f"I{number}" for number in (*range(1, 12), 15, 16)}


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_lines_means_nothing(seed: int) -> None:
    recording = everything().end()
    recording.history.pop()  # so that there is something to find
    shuffled = Recording(about=recording.about)
    records = list(recording.all())
    Random(seed).shuffle(records)
    for record in records:
        shuffled.add(record)

    expected, verdict = check(recording), check(shuffled)

    assert verdict.summary() == expected.summary()
    assert not verdict.is_clean


def test_a_recording_is_the_same_after_its_files(tmp_path: Path) -> None:
    recording = everything().end()

    recording.dump(tmp_path)

    assert Recording.load(tmp_path) == recording


def test_without_one_order_records_of_one_instant_are_not_held_against_anybody() -> None:
    story = everything()
    recording = story.end()
    for record in recording.all():
        record.at = round(record.at, 1)  # ten records share an instant
    recording.about.has_one_order = False

    verdict = check(recording)

    assert verdict.findings["I4"].violations == []
    assert verdict.findings["I8"].violations == []


def test_an_empty_recording_is_clean_and_says_that_nothing_was_looked_at() -> None:
    verdict = check(Recording())

    assert verdict.is_clean
    assert not any(finding.checked for finding in verdict.findings.values())


def test_what_a_recording_that_is_not_whole_lacks_is_not_judged() -> None:
    recording = everything().end()
    recording.about.is_whole = False
    recording.wire = []

    verdict = check(recording)

    assert {"I4", "I5", "I16"} <= set(verdict.unjudged)
    assert "I4" not in verdict.findings


def test_each_invariant_has_a_code_of_its_own() -> None:
    assert len({invariant.code for invariant in INVARIANTS}) == len(INVARIANTS) == 16


def test_the_program_ends_with_one_where_something_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = everything().end()
    recording.dump(tmp_path / "right")
    recording.history = [each for each in recording.history if each.id != "simple"]
    recording.dump(tmp_path / "wrong")

    assert main(str(tmp_path / "right")) == 0
    assert main(str(tmp_path / "wrong")) == 1
    printed = capsys.readouterr().out
    assert "I4 no ack before the commit: default/plain/simple acked and nothing was committed" in printed
    assert "delivered from bw.q.default" in printed


def test_a_verdict_names_the_first_witnesses_only() -> None:
    recording = everything().end()
    recording.history = []

    verdict = check(recording)

    assert len(verdict.findings["I4"].violations) > 5
    assert len(verdict.witnesses("I4")) == 5


NAMES = ("id", "connection", "worker", "old_worker", "new_worker", "letter", "message_id", "process")
NUMBERS = ("key", "xid", "number", "order")


def repeated(recording: Recording, times: int) -> Recording:
    """The same run `times` times over, each under other names."""
    whole = Recording(about=recording.about)
    for number in range(times):
        for record in recording.all():
            changes: dict[str, Any] = {"at": record.at + number}
            changes |= {name: f"{getattr(record, name)}-{number}" for name in NAMES if has(record, name)}
            changes |= {
                name: getattr(record, name) + number * 10_000 for name in NUMBERS if has(record, name)
            }
            whole.add(replace(record, **changes))
    return whole


def has(record: Record, name: str) -> bool:
    return bool(getattr(record, name, None))


def test_a_longer_run_takes_longer_in_proportion(
    count_steps: Callable[[Callable[[], object]], int],
) -> None:
    one, many = repeated(everything().end(), 4), repeated(everything().end(), 64)
    assert check(one).is_clean

    few, lots = count_steps(lambda: check(one)), count_steps(lambda: check(many))

    assert lots < few * 16 * 1.5

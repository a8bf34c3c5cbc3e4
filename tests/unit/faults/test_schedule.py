"""A plan of faults is drawn from its seed alone, and keeps what it promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.injection import ACTIONS
from tests.faults.schedule import KIND_BY_NAME, KINDS, MOST_AT_ONCE, schedule

ROOT = Path(__file__).parents[3]


def test_the_same_seed_makes_the_same_plan_and_another_another() -> None:
    assert schedule(7, seconds=600, faults=100) == schedule(7, seconds=600, faults=100)
    assert schedule(7, seconds=600, faults=100) != schedule(8, seconds=600, faults=100)


@pytest.mark.parametrize("seed", range(20))
def test_an_hour_has_500_faults_and_ten_of_each_kind(seed: int) -> None:
    plan = schedule(seed, seconds=3600, faults=500)

    counts = Counter(each.kind for each in plan)
    assert len(plan) == 500
    assert len(KINDS) >= 20
    assert min(counts[kind.name] for kind in KINDS) >= 10
    assert plan[-1].at + plan[-1].duration < 3600 * 1.1


@pytest.mark.parametrize("seed", range(20))
def test_no_more_than_two_are_under_way_and_one_on_the_same_thing(seed: int) -> None:
    plan = schedule(seed, seconds=3600, faults=500)

    for each in plan:
        others = [
            other
            for other in plan
            if other is not each and other.at <= each.at < other.at + other.duration + settling(other.kind)
        ]
        assert len(others) < MOST_AT_ONCE
        assert each.resource not in {other.resource for other in others}


def settling(kind: str) -> float:
    return KIND_BY_NAME[kind].settling


SILENT_FOR = 15.0  # seconds, after which others declare a worker dead


def test_the_last_daemon_is_never_cut_off_from_postgres_for_as_long_as_a_worker_may_be_silent() -> None:
    planned = schedule(1, seconds=3600, faults=500)
    longest = dict.fromkeys(range(3), 0.0)
    for each in planned:
        if each.kind in {"postgres_blackhole", "postgres_refuse"}:
            longest[each.place] = max(longest[each.place], each.duration)

    assert longest[2] < SILENT_FOR < max(longest.values())


def test_half_of_the_faults_wait_for_an_event() -> None:
    plan = schedule(3, seconds=3600, faults=500)

    assert 200 < sum(each.waiting is not None for each in plan) < 350


def test_every_kind_is_documented() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()

    assert [kind.name for kind in KINDS if f"`{kind.name}`" not in text] == []


def test_every_kind_has_an_action_and_every_action_a_kind() -> None:
    assert set(ACTIONS) == set(KIND_BY_NAME)

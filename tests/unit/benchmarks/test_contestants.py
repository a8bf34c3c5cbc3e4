"""The list of contestants."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from benchmarks.contestant import Contestant
from benchmarks.contestants import CONTESTANTS
from benchmarks.report import REFERENCE

ROWS = {each.variant_of or each.name for each in CONTESTANTS}


def test_all_that_the_table_promises_are_there() -> None:
    promised = {
        *("broker_worker", "broker_worker_transactional", "aio_pika_loop", "aiormq_multi_ack"),
        *("faststream", "taskiq", "dramatiq_2x8", "celery_solo", "celery_db_prefork2", "pgqueuer_100"),
        "procrastinate",
    }

    assert promised <= ROWS


def test_no_two_have_one_name() -> None:
    names = [each.name for each in CONTESTANTS]

    assert len(names) == len(set(names))


def test_the_reference_takes_part() -> None:
    assert REFERENCE in ROWS


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda each: str(each.name))
def test_a_contestant_has_a_program_and_says_how_it_is_set(contestant: Contestant) -> None:
    assert find_spec(f"benchmarks.runners.{contestant.runner}")
    assert contestant.setting
    assert 0 < contestant.share <= 1


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda each: str(each.name))
def test_a_goal_compares_rows_that_there_are(contestant: Contestant) -> None:
    if contestant.goal is not None:
        assert {contestant.goal.of, contestant.goal.to or contestant.variant_of or contestant.name} <= ROWS

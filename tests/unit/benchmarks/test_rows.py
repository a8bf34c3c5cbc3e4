"""From runs to the table: medians, ratios, and which of several variants stands for a row."""

from __future__ import annotations

import pytest

from benchmarks.contestant import Contestant, Goal
from benchmarks.driving import Run
from benchmarks.rows import rows
from benchmarks.throughput import Standing


def standing(name: str, *rates: float, variant_of: str | None = None, goal: Goal | None = None) -> Standing:
    contestant = Contestant(name=name, title=name, runner="none", variant_of=variant_of, goal=goal)
    runs = [Run(messages=100, seconds=100 / rate, processor_seconds=0.01) for rate in rates]
    return Standing(contestant, messages=100, runs=runs)


def test_a_row_has_the_median_of_its_rounds_and_its_ratio_to_the_reference() -> None:
    table = rows([standing("aio_pika_loop", 90, 400, 100), standing("slow", 25, 20, 30)])

    assert table["slow"].median == pytest.approx(25)
    assert table["slow"].ratio == pytest.approx(0.25)


def test_the_fastest_variant_stands_for_the_row_beside_all_of_them() -> None:
    loops = [
        standing("on_one", 100, variant_of="aio_pika_loop"),
        standing("on_the_other", 200, variant_of="aio_pika_loop"),
    ]

    table = rows(loops)

    assert list(table) == ["aio_pika_loop", "on_one", "on_the_other"]
    assert table["aio_pika_loop"].median == table["on_the_other"].median
    assert table["on_one"].ratio == pytest.approx(0.5)


def test_a_goal_compares_broker_worker_with_the_row_itself() -> None:
    table = rows([standing("broker_worker", 300), standing("peer", 100, goal=Goal(2.0))])

    assert table["peer"].compared == "broker_worker / peer"
    assert table["peer"].compared_ratio == pytest.approx(3.0)
    assert table["peer"].is_reached is True


def test_a_goal_may_compare_two_other_rows() -> None:
    goal = Goal(0.4, of="without_id", to="broker_worker")

    table = rows([standing("broker_worker", 300), standing("without_id", 90, goal=goal)])

    assert table["without_id"].compared == "without_id / broker_worker"
    assert table["without_id"].compared_ratio == pytest.approx(0.3)
    assert table["without_id"].is_reached is False


def test_a_goal_without_the_other_side_is_neither_reached_nor_missed() -> None:
    table = rows([standing("peer", 100, goal=Goal(2.0))])

    assert table["peer"].compared_ratio is None
    assert table["peer"].is_reached is None


def test_a_row_has_its_goal_once_and_not_for_each_variant() -> None:
    loop = standing("on_one", 100, variant_of="aio_pika_loop", goal=Goal(1.0))

    table = rows([loop, standing("broker_worker", 100)])

    assert table["aio_pika_loop"].goal == 1.0
    assert table["on_one"].goal is None


def test_who_failed_has_a_row_that_says_why_and_no_ratio() -> None:
    failed = standing("peer")
    failed.failure = "it did 99 of 100"

    table = rows([standing("aio_pika_loop", 100), failed])

    assert table["peer"].failure == "it did 99 of 100"
    assert table["peer"].ratio is None

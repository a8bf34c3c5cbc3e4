"""What is published is drawn from the seed alone."""

from __future__ import annotations

from collections import Counter

from tests.faults.workload import workload


def test_the_same_seed_plans_the_same_messages() -> None:
    first = list(workload(5, messages=500, seconds=60))

    assert first == list(workload(5, messages=500, seconds=60))
    assert first != list(workload(6, messages=500, seconds=60))


def test_messages_are_in_the_order_in_which_they_are_due_and_spread_over_the_time() -> None:
    due = [each.due for each in workload(5, messages=500, seconds=60)]

    assert due == sorted(due)
    assert 50 < due[-1] <= 70


def test_all_but_duplicates_have_an_id_of_their_own() -> None:
    ids = Counter(each.properties.message_id for each in workload(5, messages=5000, seconds=60))

    assert {id_.partition("-")[0] for id_, count in ids.items() if count > 1} == {"duplicates"}

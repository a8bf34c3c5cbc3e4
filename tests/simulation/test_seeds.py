"""300 seeds keep every promise, and meet every fault."""

from __future__ import annotations

import pytest

from tests.simulation.faults import RATES
from tests.simulation.judging import judge, tally
from tests.simulation.workload import VARIATIONS

SEEDS = 300
PART = 50  # for one test: it takes some seconds
ALL = 100  # seeds, among which everything happens
PATIENCE = 300  # seconds, on a machine that has other things to do
GREAT_FAULTS = frozenset(
    {
        "broker_restart",
        "cancel",
        "cancel_and_crash",
        "cancel_running",
        "channel_closed",
        "clock_stepped",
        "connection_closed",
        "consumer_cancelled",
        "copies_lost",
        "crash",
        "crash_at_a_step",
        "database_hangs",
        "database_refuses",
        "deploy",
        "duplicated",
        "expired_in_queue",
        "half_open",
        "handler_crash",
        "pause",
        "published_again",
        "reordered",
        "replay",
        "replay_again",
        "sigterm",
        "sigterm_twice",
    }
)
HANDLED = frozenset(
    {
        "adopted",
        "cancelled",
        "claim_lost",
        "conflicting",
        "dead",
        "declared_dead",
        "duplicate",
        "expired",
        "fenced",
        "givenbody",
        "needslane",
        "needsslot",
        "postponed",
        "putoff",
        "reemitted",
        "refused",
        "released",
        "rescued",
        "resumed",
        "stamped",
        "succeeded",
        "taken",
        "transaction_fenced",
    }
)
"""What the daemons have to have done, by the names of decisions, outcomes and services."""


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("first", range(1, SEEDS, PART))
def test_seeds_keep_every_promise(first: int) -> None:
    total = tally(range(first, first + PART))

    assert not total.failing, f"see: python -m tests.simulation --seeds 1 --first {min(total.failing)}"


@pytest.mark.timeout(PATIENCE)
def test_seeds_meet_every_fault_and_every_decision() -> None:
    total = tally(range(1, 1 + ALL))

    variations = {make.__name__ for _, make in VARIATIONS if make.__name__ != "nothing"}
    assert {*RATES, *GREAT_FAULTS, *variations} - set(total.faults) == set()
    assert HANDLED - set(total.done) == set()
    assert [code for code, checked in total.checked.items() if not checked] == ["I13"]  # it has no memory


def test_nothing_is_broken_any_more_once_all_is_healed() -> None:
    recording = judge(1).simulated.recording

    assert not [
        fault
        for fault in recording.faults
        if fault.phase == "begun" and fault.at > recording.about.healed_at and fault.kind != "clock_stepped"
    ]

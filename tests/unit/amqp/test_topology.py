from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_worker.amqp.topology import (
    RUNGS,
    BindingSpec,
    ExchangeSpec,
    QueueSpec,
    Topology,
    check_queue_name,
    choose_rung,
)
from broker_worker.errors import ConfigurationError
from broker_worker.outgoing import LONGEST_RUNG

draws = st.floats(0, 1, exclude_max=True)
delays = st.timedeltas(timedelta(0), timedelta(days=2))


def queues(topology: Topology) -> dict[str, QueueSpec]:
    return {spec.name: spec for spec in topology.plan() if isinstance(spec, QueueSpec)}


def exchanges(topology: Topology) -> dict[str, ExchangeSpec]:
    return {spec.name: spec for spec in topology.plan() if isinstance(spec, ExchangeSpec)}


def test_there_are_24_rungs_from_a_second_to_68_minutes() -> None:
    assert len(RUNGS) == 24
    assert RUNGS[:6] == tuple(timedelta(seconds=s) for s in (1, 2, 3, 4, 6, 8))
    assert RUNGS[-2:] == (timedelta(seconds=3072), LONGEST_RUNG)


def test_a_work_queue_dead_letters_at_least_once_under_its_poison_key() -> None:
    work = queues(Topology("bw", ["email"]))["bw.q.email"]

    assert dict(work.arguments) == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "bw.dlx",
        "x-dead-letter-routing-key": "email.poison",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 100,
        "x-consumer-timeout": 43_200_000,
    }


def test_a_work_queue_is_bound_where_publishers_publish_and_where_delays_end() -> None:
    plan = Topology("bw", ["email"]).plan()

    assert BindingSpec("bw.q.email", "bw.tasks", "email") in plan
    assert BindingSpec("bw.q.email", "bw.return", "email") in plan
    assert BindingSpec("bw.dead.email", "bw.dlx", "email.#") in plan


def test_a_rung_returns_messages_under_their_own_key_and_never_loses_one() -> None:
    rung = queues(Topology("bw", []))["bw.delay.3000"]

    assert dict(rung.arguments) == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "bw.return",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-message-ttl": 3000,
    }


def test_what_has_no_queue_goes_to_the_last_resort() -> None:
    found = exchanges(Topology("bw", []))

    for name in ("bw.tasks", "bw.return", "bw.dlx"):
        assert found[name].arguments == {"alternate-exchange": "bw.unroutable"}


def test_dead_letters_have_a_limit_that_no_broker_ever_reaches() -> None:
    found = queues(Topology("bw", ["email"]))

    for name in ("bw.dead.email", "bw.unroutable", "bw.oversize"):
        assert found[name].arguments["x-delivery-limit"] == 1_000_000


def test_what_is_too_large_for_a_reader_of_dead_letters_stays_in_a_queue_that_nobody_reads() -> None:
    found = queues(Topology("bw", ["email"]))

    for name in ("bw.dead.email", "bw.unroutable"):
        assert dict(found[name].arguments) == {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "bw.oversize",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-delivery-limit": 1_000_000,
        }
    assert dict(found["bw.oversize"].arguments) == {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}


def test_nothing_in_the_plan_refers_to_what_comes_later() -> None:
    seen = set[str]()
    for entity in Topology("bw", ["email", "reports"]).plan():
        match entity:
            case BindingSpec(queue, exchange, _):
                assert {queue, exchange} <= seen
            case QueueSpec(name, arguments):
                assert arguments.get("x-dead-letter-exchange", name) in {name, *seen}
                seen.add(name)
            case ExchangeSpec(name):
                seen.add(name)


@pytest.mark.parametrize("name", ["email", "a", "A-b_9", "x" * 100])
def test_a_queue_may_have_letters_digits_dashes_and_underscores(name: str) -> None:
    assert check_queue_name(name) == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "é", "x" * 101, "a#", "*", "a\n"])
def test_other_names_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no dot"):
        Topology("bw", [name])


@given(delays, draws)
def test_a_rung_is_one_of_the_two_neighbours_of_the_delay(delay: timedelta, draw: float) -> None:
    chosen = choose_rung(delay, draw)

    below = [rung for rung in RUNGS if rung <= delay]
    above = [rung for rung in RUNGS if rung >= delay]
    assert chosen in {below[-1] if below else RUNGS[0], above[0] if above else RUNGS[-1]}


@given(st.timedeltas(RUNGS[0], RUNGS[-1]))
def test_the_mean_of_the_chosen_rungs_is_the_delay(delay: timedelta) -> None:
    steps = 1000
    total = sum((choose_rung(delay, (step + 0.5) / steps) for step in range(steps)), timedelta(0))

    lower = max(rung for rung in RUNGS if rung <= delay)
    gap = next((rung - lower for rung in RUNGS if rung > lower), timedelta(0))
    assert abs(total / steps - delay) <= gap / steps


@given(draws)
def test_a_delay_below_a_second_waits_a_second(draw: float) -> None:
    assert choose_rung(timedelta(milliseconds=5), draw) == timedelta(seconds=1)


@given(draws)
def test_a_delay_beyond_the_last_rung_waits_on_the_last(draw: float) -> None:
    assert choose_rung(timedelta(hours=5), draw) == RUNGS[-1]

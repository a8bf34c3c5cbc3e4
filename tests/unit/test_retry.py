from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_worker.outcome import Dead, GiveUp, Postponed, Reason, Retry
from broker_worker.retry import LONGEST_DELAY, AttemptTimeoutError, RetryPolicy, follow_up

jitters = st.floats(0, 1, exclude_max=True)
attempts = st.integers(1, 10_000)
delays = st.timedeltas(timedelta(0), timedelta(days=365))
policies = st.builds(RetryPolicy, st.integers(1, 1000), delays, delays)
errors = st.sampled_from(
    [
        ValueError("x"),
        Retry(),
        Retry(delay=3),
        GiveUp("no"),
        AttemptTimeoutError(timedelta(seconds=1)),
        ExceptionGroup("g", [Retry(delay=1)]),
        KeyboardInterrupt(),
    ]
)


@settings(max_examples=50)
@given(policies, attempts, jitters)
def test_a_backoff_lies_between_half_and_whole_of_its_ceiling(
    policy: RetryPolicy, attempt: int, jitter: float
) -> None:
    backoff = policy.backoff(attempt, jitter=jitter)
    ceiling = policy.backoff(attempt, jitter=0) * 2

    assert timedelta(0) <= backoff <= policy.max_delay
    assert ceiling / 2 - timedelta(microseconds=1) <= backoff <= ceiling + timedelta(microseconds=1)


@settings(max_examples=50)
@given(policies, attempts)
def test_the_least_backoff_never_falls_with_the_attempt(policy: RetryPolicy, attempt: int) -> None:
    assert policy.backoff(attempt, jitter=0) <= policy.backoff(attempt + 1, jitter=0)


@settings(max_examples=50)
@given(policies, attempts, jitters)
def test_equal_arguments_give_equal_backoffs(policy: RetryPolicy, attempt: int, jitter: float) -> None:
    assert policy.backoff(attempt, jitter=jitter) == policy.backoff(attempt, jitter=jitter)


def test_the_ceiling_doubles_up_to_the_longest_delay() -> None:
    policy = RetryPolicy(12, timedelta(seconds=5), timedelta(minutes=1))

    ceilings = [policy.backoff(attempt, jitter=0) * 2 for attempt in range(1, 7)]

    assert [ceiling.total_seconds() for ceiling in ceilings] == [5, 10, 20, 40, 60, 60]


@settings(max_examples=50)
@given(errors, attempts, policies, jitters)
def test_what_follows_an_error_is_total_and_bounded(
    error: BaseException, attempt: int, policy: RetryPolicy, jitter: float
) -> None:
    outcome = follow_up(error, attempt=attempt, policy=policy, jitter=jitter)

    if attempt >= policy.max_attempts or isinstance(error, GiveUp):
        assert isinstance(outcome, Dead)
    else:
        assert isinstance(outcome, Postponed)
        assert timedelta(0) <= outcome.delay <= max(policy.max_delay, timedelta(seconds=3))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GiveUp("why"), Reason.GAVE_UP),
        (ExceptionGroup("of one", [ExceptionGroup("of one", [GiveUp("why")])]), Reason.GAVE_UP),
        (ValueError(), Reason.ATTEMPTS_EXHAUSTED),
        (Retry(delay=1), Reason.ATTEMPTS_EXHAUSTED),
        (AttemptTimeoutError(timedelta(seconds=1)), Reason.TIMEOUT),
    ],
    ids=["gave up", "gave up in a group", "failed", "asked for another", "took too long"],
)
def test_the_last_attempt_says_how_it_ended(error: BaseException, reason: Reason) -> None:
    policy = RetryPolicy(1, timedelta(0), timedelta(0))

    outcome = follow_up(error, attempt=1, policy=policy, jitter=0)

    assert isinstance(outcome, Dead)
    assert outcome.reason is reason


def test_a_long_delay_and_many_attempts_do_not_overflow() -> None:
    policy = RetryPolicy(1000, timedelta(minutes=5), timedelta(hours=1))

    assert policy.backoff(999, jitter=0) == timedelta(minutes=30)


def test_a_handlers_own_delay_is_taken_as_it_is_up_to_ten_years() -> None:
    policy = RetryPolicy(2, timedelta(seconds=5), timedelta(seconds=5))

    for asked, given_ in (
        (timedelta(0), timedelta(0)),
        (timedelta(hours=2), timedelta(hours=2)),
        (timedelta.max, LONGEST_DELAY),
    ):
        outcome = follow_up(Retry(delay=asked), attempt=1, policy=policy, jitter=0.5)
        assert isinstance(outcome, Postponed)
        assert outcome.delay == given_


def test_a_timeout_is_named_where_another_attempt_follows() -> None:
    policy = RetryPolicy(2, timedelta(0), timedelta(0))

    outcome = follow_up(AttemptTimeoutError(timedelta(seconds=1)), attempt=1, policy=policy, jitter=0)

    assert isinstance(outcome, Postponed)
    assert outcome.reason is Reason.TIMEOUT

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_worker.errors import ChildCrashedError, ConfigurationError
from broker_worker.outcome import Dead, GiveUp, Postponed, Reason, Retry
from broker_worker.retry import LONGEST_DELAY, AttemptTimeoutError, Policy, RetryPolicy, follow_up

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


# --- by error --------------------------------------------------------------------

BASE = RetryPolicy(3, timedelta(seconds=10), timedelta(minutes=1))


@pytest.mark.parametrize(("jitter", "least", "most"), [(0, 10, 10), (0.5, 5, 10), (1, 0, 10)])
def test_the_jitter_is_the_part_of_a_wait_that_is_drawn(jitter: float, least: float, most: float) -> None:
    policy = Policy(jitter=jitter).over(BASE)

    assert policy.backoff(1, jitter=0).total_seconds() == least
    assert policy.backoff(1, jitter=1).total_seconds() == most


def follows(error: BaseException, policy: RetryPolicy, attempt: int = 1) -> str | float:
    outcome = follow_up(error, attempt=attempt, policy=policy, jitter=1)
    return outcome.delay.total_seconds() if isinstance(outcome, Postponed) else str(outcome.reason)


BY_ERROR = RetryPolicy(
    3,
    timedelta(seconds=10),
    timedelta(minutes=1),
    retry_on=(OSError,),
    give_up_on=(FileNotFoundError,),
    policy_by_error={ConnectionError: Policy(5, delay=100, max_delay=200)},
)


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (OSError(), 1, 10),
        (ValueError(), 1, "gave_up"),
        (FileNotFoundError(), 1, "gave_up"),
        (ConnectionResetError(), 1, 100),
        (ConnectionResetError(), 4, 200),
        (ConnectionResetError(), 5, "attempts_exhausted"),
        (OSError(), 3, "attempts_exhausted"),
        (ExceptionGroup("of one", [ConnectionError()]), 1, 100),
        (ExceptionGroup("of two", [ConnectionError(), OSError()]), 1, "gave_up"),
        (Retry(delay=7), 1, 7),
        (Retry(), 1, 10),
        (GiveUp(), 1, "gave_up"),
        (AttemptTimeoutError(timedelta(seconds=1)), 1, 10),
        (AttemptTimeoutError(timedelta(seconds=1)), 3, "timeout"),
        (ChildCrashedError("died"), 1, 10),
        (ChildCrashedError("died"), 3, "crashed"),
    ],
)
def test_the_most_specific_class_that_is_named_decides(
    error: BaseException, attempt: int, expected: str | float
) -> None:
    assert follows(error, BY_ERROR, attempt) == expected


def test_a_subclass_may_be_tried_again_where_its_base_is_given_up() -> None:
    policy = RetryPolicy(3, timedelta(1), timedelta(1), retry_on=(ConnectionError,), give_up_on=(OSError,))

    assert follows(ConnectionResetError(), policy) == timedelta(1).total_seconds()
    assert follows(FileNotFoundError(), policy) == "gave_up"


def test_the_most_attempts_are_those_of_the_most_patient_policy() -> None:
    assert (BASE.most_attempts, BY_ERROR.most_attempts) == (3, 5)


@pytest.mark.parametrize(("left", "follows_another"), [(10.1, True), (10, False), (-1, False)])
def test_no_retry_waits_beyond_the_deadline(left: float, *, follows_another: bool) -> None:
    outcome = follow_up(ValueError(), attempt=1, policy=BASE, jitter=1, time_left=timedelta(seconds=left))

    assert isinstance(outcome, Postponed) == follows_another
    assert isinstance(outcome, Postponed) or outcome.reason is Reason.TIMEOUT


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_attempts": 0}, "max_attempts is 0, allowed are 1 to 1000"),
        ({"max_attempts": "3"}, "max_attempts is '3', allowed are 1 to 1000"),
        ({"jitter": 1.1}, "jitter is 1.1, allowed is 0 to 1"),
        ({"jitter": "all"}, "jitter is 'all', allowed is 0 to 1"),
        ({"delay": -1}, "delay must not be negative"),
        ({"max_delay": timedelta.max}, "max_delay must not be negative, or more than 3650 days"),
        ({"delay": "5 s"}, "delay is '5 s', neither a timedelta nor seconds"),
        ({"delay": 2, "max_delay": 1}, "delay must not be more than max_delay"),
    ],
)
def test_a_policy_that_can_not_be_is_one_line_about_its_parameter(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{says}"):
        Policy(**options)

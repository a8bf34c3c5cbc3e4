from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from broker_worker.failure import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES, clean, describe, tamed
from broker_worker.outcome import Failure
from broker_worker.retry import RetryPolicy, follow_up
from tests.hostile.errors import RAISED, unchain

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    age: int
    scores: dict[int, int] = {}


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301
    except BaseException as caught:  # noqa: BLE001
        return caught


def assert_bounded(failure: Failure) -> None:
    for text, limit in (
        (failure.error_type, 200),
        (failure.message, MAX_MESSAGE_BYTES),
        (failure.traceback or "", MAX_TRACEBACK_BYTES),
    ):
        assert len(text.encode()) <= limit
        assert "\0" not in text


@given(ANY_TEXT, st.integers(0, 40))
def test_clean_text_is_storable_within_its_limit_and_stays_as_it_is(text: str, limit: int) -> None:
    cleaned = clean(text, limit)

    assert len(cleaned.encode()) <= limit
    assert "\0" not in cleaned
    assert clean(cleaned, limit) == cleaned


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50))
def test_storable_text_that_fits_is_not_changed(text: str) -> None:
    assert clean(text, 200) == text


@given(ANY_TEXT)
def test_any_message_becomes_storable(text: str) -> None:
    assert_bounded(describe(raised(RuntimeError(text))))


def test_an_error_is_described_by_type_message_and_place() -> None:
    failure = describe(raised(ValueError("no such image")))

    assert (failure.error_type, failure.message) == ("ValueError", "no such image")
    assert failure.traceback is not None
    assert "in raised" in failure.traceback
    assert failure.traceback.endswith("ValueError: no such image")


def test_an_error_whose_str_raises_is_described() -> None:
    failure = describe(raised(Unprintable()))

    assert failure.message == "<no message: its __str__ raised SystemExit>"


def test_a_message_of_megabytes_is_cut() -> None:
    assert_bounded(describe(raised(ValueError("ä" * 10**7))))


def test_a_deep_recursion_keeps_its_ends() -> None:
    def turn() -> None:
        turn()

    with pytest.raises(RecursionError) as caught:
        turn()

    failure = describe(caught.value)

    assert_bounded(failure)
    assert failure.traceback is not None
    assert "test_a_deep_recursion_keeps_its_ends" in failure.traceback
    assert "RecursionError" in failure.traceback


def test_causes_that_go_in_circles_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    traceback = describe(first).traceback

    assert traceback is not None
    assert traceback.count("first") == 1


def test_a_long_chain_of_causes_is_cut() -> None:
    error = ValueError("x" * 900)
    for _ in range(10_000):
        outer = ValueError("x" * 900)
        outer.__cause__ = error
        error = outer

    assert_bounded(describe(error))


def test_a_group_of_a_hundred_thousand_errors_is_cut() -> None:
    failure = describe(raised(ExceptionGroup("all of them", [ValueError("one")] * 100_000)))

    assert_bounded(failure)
    assert "and 99995 more" in (failure.traceback or "")
    assert (failure.traceback or "").count("+ ValueError: one") == 5


def test_groups_in_groups_are_cut() -> None:
    group: ExceptionGroup[Exception] = ExceptionGroup("leaf", [ValueError("one")] * 10)
    for _ in range(1000):
        group = ExceptionGroup("level", [group, group])

    failure = describe(group)

    assert_bounded(failure)
    assert 1 < (failure.traceback or "").count("level") < 20


def test_a_traceback_that_is_too_long_keeps_its_ends() -> None:
    members = [raised(ValueError("x" * 900)) for _ in range(5)]
    for member in members:
        member.__cause__ = ValueError("x" * 900)
        member.__cause__.__cause__ = ValueError("first" + "x" * 900)
        member.__cause__.__cause__.__cause__ = ValueError("x" * 900)
    error = RuntimeError("last")
    error.__cause__ = BaseExceptionGroup("many", members)

    traceback = describe(error).traceback or ""

    assert_bounded(describe(error))
    assert traceback.startswith("ExceptionGroup: many")
    assert traceback.endswith("RuntimeError: last")


def test_attributes_that_raise_cost_the_traceback_only() -> None:
    class Hostile(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> tuple[Exception, ...]:
            raise OSError

    failure = describe(Hostile("text", [ValueError()]))

    assert (failure.error_type.rpartition(".")[2], failure.traceback) == ("Hostile", None)


@pytest.mark.parametrize("case", RAISED)
def test_nothing_that_a_handler_can_raise_gets_in_the_way(case: str) -> None:
    try:
        error = raised(RAISED[case]())
    except (ValueError, OverflowError) as itself:  # it can't even be made
        error = itself

    assert_bounded(describe(tamed(error)))
    followed = follow_up(error, attempt=1, policy=RetryPolicy(1, timedelta(1), timedelta(1)), jitter=0.5)
    assert_bounded(followed.failure)
    unchain(tamed(error))


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"age": "secret"}, "age: int_parsing"),
        ({"age": 1, "secret": 1}, "*: extra_forbidden"),
        ({"age": 1, "scores": {"secret": 1}}, "scores.*.[key]: int_parsing"),
    ],
)
def test_a_validation_error_tells_places_and_kinds_but_never_values(data: object, shown: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate(data)
    outer = RuntimeError("while reading")
    outer.__cause__ = caught.value

    failure = describe(caught.value)

    assert failure.message == shown
    assert "secret" not in (failure.traceback or "")
    assert "secret" not in (describe(outer).traceback or "")


def test_a_validation_error_with_very_many_faults_is_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[int]).validate_python(["x"] * 900)

    assert describe(caught.value).message.endswith("and 890 more")


def test_the_fingerprint_is_of_type_and_place_but_not_of_the_message() -> None:
    one, other = describe(raised(ValueError("1"))), describe(raised(ValueError("2")))

    assert one.fingerprint == other.fingerprint
    assert len(one.fingerprint or "") == 16


def test_another_type_has_another_fingerprint() -> None:
    assert describe(raised(ValueError())).fingerprint != describe(raised(TypeError())).fingerprint


def test_another_place_has_another_fingerprint() -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")

    assert describe(caught.value).fingerprint != describe(raised(ValueError())).fingerprint


def test_groups_of_different_errors_have_different_fingerprints() -> None:
    one = describe(raised(ExceptionGroup("", [ValueError()])))
    other = describe(raised(ExceptionGroup("", [TypeError()])))

    assert one.fingerprint != other.fingerprint


def test_locals_are_not_shown() -> None:
    def handle() -> None:
        password = "hun" + "ter2"
        raise ValueError(len(password))

    with pytest.raises(ValueError, match="7") as caught:
        handle()

    assert "hunter2" not in str(dataclasses.asdict(describe(caught.value)))


def test_of_a_validation_error_with_too_many_faults_the_number_is_told() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[int]).validate_python(["x"] * 10_000)

    assert describe(caught.value).message == "10000 errors"

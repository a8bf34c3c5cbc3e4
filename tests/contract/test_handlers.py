"""What becomes of tasks: the same in the harness as on real services, so that the harness can't lie."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from tests.support.services import RunningServers
from tests.support.stages import (
    Letter,
    ServicesStage,
    Stage,
    harness_stage,
    services_stage,
    until_ended,
)

pytestmark = [
    pytest.mark.timeout(180),  # the first test of the services starts them
    pytest.mark.parametrize("stage", ["harness", "services"], indirect=True),
]


@pytest.fixture(scope="module")
def services(
    running_servers: RunningServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServicesStage]:
    """One daemon for all of them: each test has task ids of its own."""
    with services_stage(running_servers, tmp_path_factory.mktemp("services")) as stage:
        yield stage


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "services":
        yield request.getfixturevalue("services")
        return
    with harness_stage() as stage:
        yield stage


def outcomes_seen(stage: Stage, id_: str) -> list[str]:
    """What the middleware saw of a task."""
    asking = stage.publish("stage.seen", {"task_id": id_})
    seen: list[str] = until_ended(stage, asking).result
    return seen


@pytest.mark.parametrize("name", ["double", "in_a_thread", "in_a_child"])
def test_what_a_handler_returns_is_the_result(stage: Stage, name: str) -> None:
    id_ = stage.publish(f"stage.{name}", {"number": 21})

    seen = until_ended(stage, id_)

    assert (seen.state, seen.result, seen.attempt, seen.failed) == ("succeeded", 42, 1, [])


def test_a_class_is_made_with_its_resource(stage: Stage) -> None:
    id_ = stage.publish("stage.greet", {"name": "ada"})

    assert until_ended(stage, id_).result == "hello ada"


def test_a_payload_that_does_not_fit_is_a_dead_letter(stage: Stage) -> None:
    id_ = stage.publish("stage.double", {"number": "many"})

    seen = until_ended(stage, id_)

    assert (seen.state, seen.reason, seen.attempt) == ("dead", "invalid_payload", 0)
    assert stage.letters(id_) == [Letter("invalid_payload", {"number": "many"})]


def test_a_name_that_nobody_registered_is_a_dead_letter(stage: Stage) -> None:
    id_ = stage.publish("stage.nobody", {"number": 1})

    seen = until_ended(stage, id_)

    assert (seen.state, seen.reason, seen.error_type) == ("dead", "unknown_task", "UnknownTask")
    assert stage.letters(id_) == [Letter("unknown_task", {"number": 1})]


def test_a_task_that_fails_is_tried_again_until_it_succeeds(stage: Stage) -> None:
    id_ = stage.publish("stage.fails_twice")

    seen = until_ended(stage, id_)

    assert (seen.state, seen.result, seen.error_type) == ("succeeded", 3, None)
    assert seen.failed == [(1, "failed"), (2, "failed")]


def test_a_task_without_an_attempt_left_is_a_dead_letter(stage: Stage) -> None:
    id_ = stage.publish("stage.fails_always")

    seen = until_ended(stage, id_)

    assert (seen.state, seen.reason, seen.error_type) == ("dead", "attempts_exhausted", "RuntimeError")
    assert seen.failed == [(1, "failed"), (2, "failed"), (3, "attempts_exhausted")]
    assert stage.letters(id_) == [Letter("attempts_exhausted", {})]


@pytest.mark.parametrize(("name", "error_type"), [("gives_up", "GiveUp"), ("gives_up_on", "KeyError")])
def test_a_final_error_ends_a_task_at_its_first_attempt(stage: Stage, name: str, error_type: str) -> None:
    id_ = stage.publish(f"stage.{name}")

    seen = until_ended(stage, id_)

    assert (seen.state, seen.reason, seen.error_type) == ("dead", "gave_up", error_type)
    assert seen.failed == [(1, "gave_up")]


def test_a_handler_says_itself_when_it_is_tried_again(stage: Stage) -> None:
    id_ = stage.publish("stage.asks_again")

    seen = until_ended(stage, id_)

    assert (seen.result, seen.failed) == (2, [(1, "failed")])


def test_a_handler_that_takes_too_long_is_ended(stage: Stage) -> None:
    id_ = stage.publish("stage.too_slow")

    seen = until_ended(stage, id_)

    assert (seen.state, seen.reason, seen.error_type) == ("dead", "timeout", "AttemptTimeoutError")


def test_no_attempt_begins_after_the_deadline_of_all(stage: Stage) -> None:
    id_ = stage.publish("stage.has_a_deadline")

    seen = until_ended(stage, id_)

    assert (seen.state, seen.reason) == ("dead", "timeout")
    assert seen.failed == [(1, "failed"), (2, "timeout")]


def test_a_task_that_waits_is_cancelled_at_once(stage: Stage) -> None:
    id_ = stage.publish("stage.double", {"number": 1}, delay=3600)
    stage.until(id_, lambda seen: seen.state == "queued")

    stage.cancel(id_)

    seen = until_ended(stage, id_)
    assert (seen.state, seen.attempt, seen.failed) == ("cancelled", 0, [])


def test_a_task_that_runs_is_cancelled_where_it_is(stage: Stage) -> None:
    id_ = stage.publish("stage.hangs")
    stage.until(id_, lambda seen: seen.state == "running")

    stage.cancel(id_)

    seen = until_ended(stage, id_)
    assert (seen.state, seen.failed) == ("cancelled", [(1, "cancelled")])


def test_a_message_that_comes_too_late_is_not_run(stage: Stage) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)

    id_ = stage.publish("stage.double", {"number": 1}, not_after=long_ago)

    seen = until_ended(stage, id_)
    assert (seen.state, seen.attempt) == ("expired", 0)


def test_a_message_that_comes_twice_is_run_once(stage: Stage) -> None:
    id_ = stage.publish("stage.double", {"number": 1}, times=3)

    until_ended(stage, id_)

    assert outcomes_seen(stage, id_) == ["Succeeded"]


def test_another_message_under_the_same_id_is_a_dead_letter_of_its_own(stage: Stage) -> None:
    id_ = stage.publish("stage.double", {"number": 1})
    until_ended(stage, id_)

    stage.publish("stage.double", {"number": 2}, id=id_)

    assert stage.letters(id_) == [Letter("conflict", {"number": 2})]
    assert until_ended(stage, id_).result == 2


def test_progress_is_shown_while_the_handler_runs(stage: Stage) -> None:
    id_ = stage.publish("stage.reports")

    seen = stage.until(id_, lambda seen: seen.progress is not None)

    assert (seen.state, seen.progress) == ("running", 0.25)


def test_a_checkpoint_is_given_to_the_next_attempt(stage: Stage) -> None:
    id_ = stage.publish("stage.saves")

    seen = until_ended(stage, id_)

    assert (seen.result, seen.attempt) == (7, 2)


def test_what_a_handler_sends_runs_after_it(stage: Stage) -> None:
    id_ = stage.publish("stage.sends", {"number": 21})

    assert until_ended(stage, id_).state == "succeeded"
    assert until_ended(stage, f"{id_}-child").result == 42


def test_what_a_failed_attempt_sent_is_not_sent(stage: Stage) -> None:
    id_ = stage.publish("stage.sends_and_fails")

    assert until_ended(stage, id_).state == "dead"
    assert not stage.is_known(f"{id_}-child")


def test_an_event_goes_to_its_exchange(stage: Stage) -> None:
    id_ = stage.publish("stage.tells", {"exchange": stage.exchange}, correlation_id="c-1")

    assert until_ended(stage, id_).state == "succeeded"
    (event,) = stage.events()
    assert (event.routing_key, event.correlation_id, event.payload) == ("order.booked", "c-1", {"order": 7})


def test_middleware_sees_the_outcome_of_every_attempt(stage: Stage) -> None:
    id_ = stage.publish("stage.fails_always")

    until_ended(stage, id_)

    assert outcomes_seen(stage, id_) == ["Postponed", "Postponed", "Dead"]


def test_the_outcome_is_sent_to_who_asked_for_it(stage: Stage) -> None:
    asked = uuid4().hex
    id_ = stage.publish("stage.double", {"number": 21}, reply_to=stage.replies_to, correlation_id=asked)

    until_ended(stage, id_)

    (reply,) = stage.replies(asked)
    assert reply.payload == {
        "id": id_,
        "name": "stage.double",
        "state": "succeeded",
        "attempt": 1,
        "reason": None,
        "error_type": None,
        "result": 42,
    }


def test_a_replay_begins_anew(stage: Stage) -> None:
    id_ = stage.publish("stage.fails_always")
    until_ended(stage, id_)

    stage.replay(id_)

    seen = stage.until(id_, lambda seen: len(seen.failed) == 6 and seen.state == "dead")
    assert seen.failed[3:] == [(1, "failed"), (2, "failed"), (3, "attempts_exhausted")]
    assert len(stage.letters(id_)) == 1

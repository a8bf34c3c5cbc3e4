"""Recovery, resources, logs, and what copies carry: I12, I13, I14, I16; and the figures of a run."""

from __future__ import annotations

import pytest

from tests.faults.checker import check
from tests.faults.records import Process, Publish
from tests.support.stories import ALICE, Story, everything, plain


@pytest.fixture
def story() -> Story:
    return everything()


def waiting_through(story: Story, *, wait: float, **fault: float) -> None:
    """A message is confirmed, something breaks and is healed, and the message is taken so long after."""
    story.publish("waiting")
    story.fault("broker_kill", number=1, **fault)
    story.now += wait
    story.deliver("waiting", tag=50)
    story.claim("waiting")
    story.run("waiting")
    story.succeed("waiting")
    story.ack(50)


def test_work_that_does_not_go_on_after_a_heal_is_told(story: Story) -> None:
    waiting_through(story, wait=30)

    assert check(story.end()).violated == ["I12"]


def test_work_that_goes_on_soon_is_right_and_timed(story: Story) -> None:
    waiting_through(story, wait=3)

    verdict = check(story.end())

    assert verdict.is_clean
    assert verdict.figures["recoveries"] == 1
    assert 3 < verdict.figures["recovery_p95_s"] < 4


def test_a_fault_may_have_a_bound_of_its_own(story: Story) -> None:
    waiting_through(story, wait=30, bound=40.0)

    assert check(story.end()).is_clean


def test_where_nothing_waits_nothing_has_to_go_on(story: Story) -> None:
    story.fault("broker_kill", number=1)
    story.now += 60
    plain(story, "next", tag=50)

    assert check(story.end()).is_clean


def test_what_breaks_again_is_not_judged(story: Story) -> None:
    story.publish("waiting")
    story.fault("broker_kill", number=1)
    story.now += 1
    story.fault("postgres_kill", number=2, lasts=50.0)
    story.deliver("waiting", tag=50)
    story.claim("waiting")
    story.run("waiting")
    story.succeed("waiting")
    story.ack(50)

    verdict = check(story.end())

    assert verdict.is_clean
    assert verdict.figures["recoveries"] == 1
    assert verdict.figures["faults"] == {"broker_kill": 1, "postgres_kill": 1}


def test_a_daemon_that_ends_by_itself_is_told(story: Story) -> None:
    story.tell(Process(kind="ended", process=ALICE, exit_code=1, is_expected=False))

    assert check(story.end()).violated == ["I12"]


def test_a_daemon_that_was_declared_dead_ends_as_it_has_to(story: Story) -> None:
    story.tell(Process(kind="ended", process=ALICE, worker=ALICE, exit_code=1, is_expected=False))

    assert check(story.end()).is_clean


def looked_at(story: Story, **growth: int) -> None:
    """Look at a process each ten seconds; `growth` from one to the next."""
    for number in range(100):
        story.now += 10
        sizes = {name: 50 + number * step for name, step in growth.items()}
        story.tell(Process(kind="sample", process=ALICE, **{"rss": 100 * 2**20, "fds": 30, **sizes}))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["fds", "threads", "backends"])
def test_a_process_that_grows_is_told(story: Story, what: str) -> None:
    looked_at(story, **{what: 1})

    assert check(story.end()).violated == ["I13"]


def test_memory_that_grows_is_told_and_measured(story: Story) -> None:
    looked_at(story, rss=2**20)

    verdict = check(story.end())

    assert verdict.violated == ["I13"]
    assert verdict.figures["memory_mib_per_hour"] == pytest.approx(360, rel=0.01)


def test_a_process_that_stays_as_it_is_is_right(story: Story) -> None:
    looked_at(story)

    verdict = check(story.end())

    assert verdict.is_clean
    assert verdict.figures["memory_mib_per_hour"] == 0


def test_an_idle_transaction_is_told_where_nothing_is_broken(story: Story) -> None:
    story.tell(Process(kind="sample", process=ALICE, oldest_transaction=30.0))
    assert check(story.end()).violated == ["I13"]

    story = everything()
    story.fault("postgres_stop", number=1)
    story.tell(Process(kind="sample", process=ALICE, oldest_transaction=30.0))
    assert check(story.end()).is_clean


@pytest.mark.parametrize(
    "line",
    [
        "PRECONDITION_FAILED - unknown delivery tag 7",
        "Task exception was never retrieved",
        "connecting to postgres://app:hunter2@db/app",
    ],
)
def test_a_line_that_must_not_be_is_told(story: Story, line: str) -> None:
    story.recording.about.secrets = ["hunter2"]
    story.log("connected")
    assert check(story.end()).is_clean

    story.log(line)
    verdict = check(story.recording)
    assert verdict.violated == ["I14"]
    assert "hunter2" not in verdict.violations[0].text


@pytest.mark.parametrize("name", ["x-death", "x-delivery-count", "CC", "bcc"])
def test_a_header_of_the_broker_in_a_publish_is_told(story: Story, name: str) -> None:
    sent = next(each for each in story.recording.wire if each.kind == "publish")
    sent.headers = [*sent.headers, name]

    assert check(story.end()).violated == ["I16"]


def test_a_copy_with_another_body_is_told(story: Story) -> None:
    sent = next(each for each in story.recording.wire if each.kind == "publish")
    sent.digest = "changed"

    assert check(story.end()).violated == ["I16"]


def test_two_publishes_under_one_message_id_are_told(story: Story) -> None:
    first, second, *_ = (each for each in story.recording.wire if each.kind == "publish")
    second.message_id = first.message_id

    assert check(story.end()).violated == ["I16"]


def test_the_figures_count_what_was_asked_and_what_became_of_it(story: Story) -> None:
    figures = check(story.end()).figures

    assert figures["publishes"] == {"info": 1, "ok": 6}
    assert figures["states"] == {"dead": 1, "succeeded": 5}
    assert figures["repeated_runs"] == 1


def test_what_arrived_although_nobody_knew_is_recovered(story: Story) -> None:
    plain(story, "unheard", tag=50)
    answers = [each for each in story.recording.publisher if each.kind == "ok"]
    story.recording.publisher.remove(answers[-1])
    assert isinstance(answers[-1], Publish)

    verdict = check(story.end())

    assert verdict.is_clean
    assert verdict.figures["recovered"] == 1

"""Attempts, steps, fences and times: I8, I9, I10, I15."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import check
from tests.faults.records import Process, WorkerChange
from tests.support.stories import ALICE, BOB, Story, everything, plain


@pytest.fixture
def story() -> Story:
    return everything()


def begun(story: Story, id_: str, *, tag: int = 50, **facts: Any) -> None:  # noqa: ANN401 - of any field
    story.publish(id_)
    story.deliver(id_, tag=tag)
    story.claim(id_, **facts)
    story.run(id_)


def finished(story: Story, id_: str, *, tag: int = 50) -> None:
    story.succeed(id_)
    story.ack(tag)


# --- I8 ----------------------------------------------------------------------------


def test_a_handler_that_begins_before_its_claim_is_not_counted(story: Story) -> None:
    story.publish("early")
    story.deliver("early", tag=50)
    claim = story.claim("early")
    story.run("early")
    begin = next(each for each in story.recording.runs if each.id == "early")
    claim.at, begin.at, claim.order, begin.order = begin.at, claim.at, begin.order, claim.order
    finished(story, "early")

    assert check(story.end()).violated == ["I8"]


def test_a_claim_lets_its_handler_begin_once(story: Story) -> None:
    begun(story, "repeated")
    story.run("repeated")
    finished(story, "repeated")

    assert check(story.end()).violated == ["I8"]


def test_a_handler_of_another_worker_has_no_claim(story: Story) -> None:
    begun(story, "stolen")
    story.recording.runs[-2].worker = BOB
    finished(story, "stolen")

    assert check(story.end()).violated == ["I8"]


def test_a_claim_that_counts_no_attempt_is_told(story: Story) -> None:
    begun(story, "uncounted", new_attempt=0)
    finished(story, "uncounted")

    assert check(story.end()).violated == ["I8"]


def test_an_attempt_more_than_the_policy_allows_is_told(story: Story) -> None:
    begun(story, "often", max_attempts=1)
    copy = story.fail("often")
    story.ack(50)
    story.relay(copy, tag=50)
    story.deliver("often", tag=51, epoch=1)
    story.claim("often")
    story.run("often")
    finished(story, "often", tag=51)

    assert check(story.end()).violated == ["I8"]


def test_a_release_that_is_charged_is_told(story: Story) -> None:
    recording = story.end()
    released = next(each for each in recording.history if each.interruptions and each.new_state == "queued")
    later = [each for each in recording.history if each.key == released.key and each.order > released.order]
    released.new_attempt += 1
    for each in later:
        each.old_attempt += 1
        each.new_attempt += 1

    assert "I8" in check(recording).violated


def test_a_failed_attempt_without_a_record_is_told(story: Story) -> None:
    recording = story.end()
    recording.history_attempts.pop(0)

    assert check(recording).violated == ["I8"]


def test_a_record_of_another_commit_is_told(story: Story) -> None:
    recording = story.end()
    recording.history_attempts[0].xid = 99_999

    assert check(recording).violated == ["I8"]


def test_a_success_with_a_record_of_failure_is_told(story: Story) -> None:
    row = story.rows["simple"]
    story.record("simple", row.xid, "failed")

    assert check(story.end()).violated == ["I8"]


def test_fifty_releases_are_the_end(story: Story) -> None:
    begun(story, "restless")
    story.rows["restless"].interruptions = 49
    copy = story.release("restless")
    story.ack(50)
    story.relay(copy, tag=50)
    story.deliver("restless", tag=51, epoch=1)
    story.claim("restless")
    story.run("restless")
    finished(story, "restless", tag=51)

    assert check(story.end()).violated == ["I8"]


# --- I9 ----------------------------------------------------------------------------


def test_a_step_that_the_table_does_not_have_is_told(story: Story) -> None:
    begun(story, "strange")
    xid = story.xid()
    story.record("strange", xid, "expired")
    story.step("strange", "expired", xid=xid)
    story.ack(50)

    assert check(story.end()).violated == ["I9"]


@pytest.mark.parametrize("growth", [0, 2])
def test_a_claim_raises_the_epoch_by_one(story: Story, growth: int) -> None:
    begun(story, "strange", new_epoch=growth)
    finished(story, "strange")

    assert check(story.end()).violated == ["I9"]


def test_a_take_over_raises_the_epoch() -> None:
    story = Story()
    begun(story, "taken")
    story.lose(ALICE)
    story.bury_worker(ALICE)
    story.deliver("taken", tag=1, to=BOB, redelivered=True)
    story.claim("taken", worker=BOB, new_epoch=1)
    story.run("taken")
    story.succeed("taken")
    story.ack(1, of=BOB)

    assert "I9" in check(story.end()).violated


def test_a_waiting_task_is_sent_again_under_a_new_epoch(story: Story) -> None:
    story.publish("overdue")
    story.deliver("overdue", tag=50)
    copy = story.put_off("overdue")
    story.ack(50)
    story.relay(copy, tag=50)
    xid = story.xid()
    last = story.rows["overdue"]
    story.tell(replace(last, xid=xid, old_state="queued", old_epoch=1, old_body=True, interruptions=1))
    story.deliver("overdue", tag=51, epoch=1)
    story.claim("overdue")
    story.run("overdue")
    finished(story, "overdue", tag=51)
    assert check(story.end()).is_clean, "nothing but a counter changed"


def test_a_row_that_vanishes_before_its_end_is_told(story: Story) -> None:
    begun(story, "vanished")
    story.step("vanished", "")
    story.ack(50)

    assert "I9" in check(story.recording).violated


def test_a_gap_in_the_history_is_told(story: Story) -> None:
    recording = story.end()
    gone = next(each for each in recording.history if each.id == "retried" and each.new_state == "retrying")
    recording.history.remove(gone)

    assert "I9" in check(recording).violated


def test_an_insert_and_an_update_of_one_commit_are_one_step(story: Story) -> None:
    story.publish("new")
    story.deliver("new", tag=50)
    xid = story.xid()
    story.step("new", "queued", xid=xid)
    fields = {"new_epoch": 1, "new_attempt": 1, "new_worker": ALICE}
    story.step("new", "running", xid=xid, **fields)
    story.run("new")
    finished(story, "new")

    assert check(story.end()).is_clean


# --- I10 ---------------------------------------------------------------------------


def taken(story: Story) -> None:
    """Bob takes over what Alice runs."""
    begun(story, "taken")
    story.publish("taken")
    story.deliver("taken", tag=30, to=BOB)
    story.claim("taken", worker=BOB)
    story.run("taken")
    story.succeed("taken")
    story.ack(30, of=BOB)


def test_a_take_over_from_a_worker_that_lives_is_told() -> None:
    story = Story()
    taken(story)

    assert check(story.end()).violated == ["I10"]


def test_a_take_over_from_a_dead_worker_is_right() -> None:
    story = Story()
    story.bury_worker(ALICE)
    taken(story)

    assert check(story.end()).is_clean


def test_a_rescue_from_a_worker_that_lives_is_told() -> None:
    story = Story()
    begun(story, "rescued")
    story.step("rescued", "running", new_body=True)
    story.ack(50)
    copy = story.rescue("rescued")
    story.relay(copy, tag=30, by=BOB)
    story.deliver("rescued", tag=31, to=BOB, epoch=2)
    story.claim("rescued", worker=BOB)
    story.run("rescued")
    story.succeed("rescued")
    story.ack(31, of=BOB)

    assert check(story.end()).violated == ["I10"]


def test_only_the_holder_writes_the_end_of_its_run() -> None:
    story = Story()
    begun(story, "written")
    story.succeed("written").actor = BOB
    story.ack(50)

    assert check(story.end()).violated == ["I10"]


def test_one_epoch_has_one_worker() -> None:
    story = Story()
    begun(story, "shared")
    story.step("shared", "running", new_worker=BOB)
    story.succeed("shared")
    story.ack(50)

    assert check(story.end()).violated == ["I9", "I10"]


def test_a_worker_that_has_no_row_can_not_be_seen_to_be_dead(story: Story) -> None:
    begun(story, "unseen", new_worker="carol")
    finished(story, "unseen")

    assert check(story.end()).violated == ["I10"]


def test_a_worker_that_beats_is_not_dead(story: Story) -> None:
    story.bury_worker(BOB, after=2)

    assert check(story.end()).violated == ["I10"]


@pytest.mark.parametrize("way", ["left", "actor", "exit code"])
def test_a_worker_may_say_itself_that_it_is_dead(story: Story, way: str) -> None:
    death: WorkerChange = story.bury_worker(BOB, after=1)
    if way == "left":
        death.op = "left"
    elif way == "actor":
        death.actor = BOB
    else:
        story.tell(Process(kind="ended", process=BOB, worker=BOB, exit_code=0))

    assert check(story.end()).is_clean


# --- I15 ---------------------------------------------------------------------------


def test_nothing_begins_before_its_time(story: Story) -> None:
    story.publish("early", deliver_at=story.now + 60)
    story.deliver("early", tag=50)
    story.claim("early")
    story.run("early")
    finished(story, "early")

    assert check(story.end()).violated == ["I15"]


def test_nothing_begins_after_its_time(story: Story) -> None:
    story.publish("late", not_after=story.now + 1)
    story.now += 60
    story.deliver("late", tag=50)
    story.claim("late")
    story.run("late")
    finished(story, "late")

    assert check(story.end()).violated == ["I15"]


def test_a_message_that_was_published_again_without_a_time_may_begin_at_once() -> None:
    story = Story()
    story.publish("whenever", deliver_at=story.now + 60)
    plain(story, "whenever", tag=1)

    assert check(story.end()).is_clean

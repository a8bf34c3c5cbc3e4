"""Losses, ghosts, second ends and leftovers: I1, I2, I3, I11."""

from __future__ import annotations

import pytest

from tests.faults.checker import check
from tests.faults.records import FinalOutbox, Sample
from tests.support.stories import Story, everything, plain, retried


@pytest.fixture
def story() -> Story:
    return everything()


def test_a_confirmed_message_without_a_row_is_lost(story: Story) -> None:
    story.publish("lost")

    assert check(story.end()).violated == ["I1"]


def test_a_message_of_which_nobody_knows_whether_it_arrived_may_be_missing(story: Story) -> None:
    story.publish("unknown", kind="info")
    story.publish("refused", kind="fail")

    assert check(story.end()).is_clean


def test_a_confirmed_message_that_never_ends_is_lost(story: Story) -> None:
    story.publish("stuck")
    story.deliver("stuck", tag=50)
    copy = story.put_off("stuck")
    story.ack(50)
    story.relay(copy, tag=50)

    assert check(story.end()).violated == ["I1", "I11"]


def test_nothing_is_said_of_the_end_of_a_run_that_was_cut_short(story: Story) -> None:
    story.publish("not looked at yet")
    story.recording.about.has_quiet_end = False

    assert check(story.end()).is_clean


def test_a_message_that_is_no_task_ends_as_a_dead_letter(story: Story) -> None:
    story.publish("broken", expects="letter")
    assert check(story.end()).violated == ["I1"]

    story.keep("broken", "letter-broken", "malformed")
    recording = story.end()
    assert "I1" not in check(recording).violated


def test_a_message_whose_identity_is_taken_ends_as_a_dead_letter() -> None:
    story = Story()
    plain(story, "taken", tag=1)
    story.publish("taken", digest="another", body="another")
    assert check(story.end()).violated == ["I1"]


def test_a_message_without_an_id_is_a_task_under_another(story: Story) -> None:
    story.publish("", digest="its body", body="its body")
    assert check(story.end()).violated == ["I1"]

    story = everything()
    story.publish("", digest="its body", body="its body")
    story.claim("stamped", digest="its body")
    story.succeed("stamped")
    story.run("stamped")
    assert "I1" not in check(story.end()).violated


def test_two_equal_messages_without_ids_are_two_tasks(story: Story) -> None:
    for _ in range(2):
        story.publish("", digest="its body", body="its body")
    story.claim("stamped", digest="its body")
    story.succeed("stamped")

    assert "I1" in check(story.end()).violated


def test_a_task_that_nobody_published_comes_from_nowhere(story: Story) -> None:
    story.claim("ghost")
    story.run("ghost")
    story.succeed("ghost")

    assert check(story.end()).violated == ["I2"]


def test_a_task_that_a_handler_sent_comes_from_somewhere(story: Story) -> None:
    story.send_child("simple", "child")
    story.claim("child")
    story.run("child")
    story.succeed("child")

    assert check(story.end()).is_clean


def test_a_body_that_nobody_published_comes_from_nowhere(story: Story) -> None:
    recording = story.end()
    recording.final_tasks[0].digest = "changed on the way"

    assert "I2" in check(recording).violated


def test_a_dead_letter_of_nothing_comes_from_nowhere(story: Story) -> None:
    story.keep("never heard of", "letter", "malformed")

    assert check(story.end()).violated == ["I2"]


def test_a_task_that_ends_twice_has_two_masters(story: Story) -> None:
    story.step("simple", "succeeded")

    assert check(story.end()).violated == ["I3"]


def test_a_replayed_task_may_end_once_more() -> None:
    story = Story()
    retried(story, "replayed", tag=1)
    xid = story.xid()
    epoch = story.rows["replayed"].new_epoch + 1
    story.step("replayed", "queued", xid=xid, new_epoch=epoch, new_attempt=0, new_body=True)
    copy = story.owe("replayed", "copy", xid)
    story.relay(copy, tag=9)
    story.deliver("replayed", tag=9, epoch=epoch)
    story.claim("replayed")
    story.run("replayed")
    story.succeed("replayed")
    story.ack(9)
    recording = story.end()
    recording.final_letters[0].resolution = "replayed"

    assert check(recording).is_clean


def test_a_row_of_the_outbox_that_is_left_is_a_debt(story: Story) -> None:
    recording = story.end()
    recording.add(FinalOutbox(number=99, kind="copy"))

    assert check(recording).violated == ["I11"]


@pytest.mark.parametrize("left", [{"ready": 1, "unacked": 0}, {"ready": 0, "unacked": 1}])
def test_a_message_that_is_left_in_a_queue_is_not_accounted_for(story: Story, left: dict[str, int]) -> None:
    story.end()
    story.tell(Sample(amqp_queue="bw.q.default", **left))

    assert check(story.recording).violated == ["I11"]


def test_a_dead_task_without_a_letter_is_a_silent_end(story: Story) -> None:
    recording = story.end()
    recording.final_letters.clear()

    assert check(recording).violated == ["I11"]


def test_an_open_letter_of_a_task_that_is_well_is_wrong(story: Story) -> None:
    recording = story.end()
    recording.final_letters[0].key = recording.final_tasks[0].key

    assert check(recording).violated == ["I11"]


def test_a_letter_that_was_never_published_is_a_silent_end(story: Story) -> None:
    recording = story.end()
    recording.received.clear()

    assert check(recording).violated == ["I11"]


def test_a_row_that_its_history_does_not_know_was_changed_behind_the_triggers(story: Story) -> None:
    recording = story.end()
    recording.final_tasks[0].epoch += 1

    assert check(recording).violated == ["I11"]

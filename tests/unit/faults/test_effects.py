"""Effects that are there twice or not at all, and debts that nobody wrote down: I6, I7."""

from __future__ import annotations

import pytest

from tests.faults.checker import check
from tests.faults.records import Received
from tests.support.stories import Story, everything


@pytest.fixture
def story() -> Story:
    return everything()


def booked(story: Story, *, effects: int = 1) -> None:
    story.publish("transfer", name="transfer")
    story.deliver("transfer", tag=50, name="transfer")
    story.claim("transfer", name="transfer")
    story.run("transfer")
    story.succeed("transfer", effects=effects)
    story.ack(50)


def test_effects_of_two_transactions_are_one_too_many(story: Story) -> None:
    booked(story)
    story.effect("transfer", story.xid())

    assert check(story.end()).violated == ["I6"]


def test_several_rows_of_one_transaction_are_one_effect(story: Story) -> None:
    booked(story, effects=2)

    assert check(story.end()).is_clean


def test_a_success_without_its_effects_is_a_lost_write(story: Story) -> None:
    booked(story, effects=0)

    assert check(story.end()).violated == ["I6"]


def test_effects_of_a_task_that_did_not_succeed_were_not_rolled_back(story: Story) -> None:
    story.publish("failed", name="transfer")
    story.deliver("failed", tag=50, name="transfer")
    story.claim("failed", name="transfer")
    story.run("failed")
    story.effect("failed", story.xid())
    letter = story.die("failed")
    story.ack(50)
    story.relay(letter, tag=50)

    assert check(story.end()).violated == ["I6"]


def test_effects_of_another_transaction_than_the_end_are_not_one_with_it(story: Story) -> None:
    booked(story, effects=0)
    story.effect("transfer", story.xid())

    assert check(story.end()).violated == ["I6"]


def test_money_that_appears_is_told(story: Story) -> None:
    booked(story)
    story.recording.effects[-1].amount = 5

    assert check(story.end()).violated == ["I6"]


def test_a_success_whose_handler_never_began_is_made_up(story: Story) -> None:
    story.publish("skipped")
    story.deliver("skipped", tag=50)
    story.claim("skipped")
    story.succeed("skipped")
    story.ack(50)

    assert check(story.end()).violated == ["I6"]


def failed_without(story: Story, what: str) -> None:
    story.publish("failed")
    story.deliver("failed", tag=50)
    story.claim("failed")
    story.run("failed")
    xid = story.xid()
    story.record("failed", xid, "failed")
    story.step("failed", "retrying", xid=xid, new_body=what != "body")
    copy = story.owe(
        "failed", "copy", story.xid() if what == "commit" else xid, epoch=2 if what == "epoch" else 1
    )
    story.ack(50)
    story.relay(copy, tag=50)
    story.deliver("failed", tag=51, epoch=copy.epoch)
    story.claim("failed")
    story.run("failed")
    story.succeed("failed")
    story.ack(51)


@pytest.mark.parametrize("what", ["commit", "body"])
def test_a_postponement_owes_its_copy_and_its_body_in_the_same_commit(story: Story, what: str) -> None:
    failed_without(story, what)

    assert check(story.end()).violated == ["I7"]


def test_a_copy_of_another_epoch_is_not_the_one_that_is_owed(story: Story) -> None:
    failed_without(story, "epoch")

    assert "I7" in check(story.end()).violated


def test_two_copies_of_one_epoch_are_one_too_many(story: Story) -> None:
    story.owe("retried", "copy", story.xid(), epoch=1)

    assert "I7" in check(story.end()).violated


def test_a_copy_that_was_sent_is_told_apart_from_none(story: Story) -> None:
    failed_without(story, "nothing")

    assert check(story.end()).is_clean


def test_a_death_owes_its_letter_in_the_same_commit(story: Story) -> None:
    recording = story.end()
    recording.history_letters[0].xid = 99_999

    assert check(recording).violated == ["I7"]


def test_an_end_owes_the_reply_that_was_asked_for(story: Story) -> None:
    story.publish("asking", reply_to="answers")
    story.deliver("asking", tag=50)
    story.claim("asking", reply_to="answers")
    story.run("asking")
    xid = story.xid()
    reply = story.owe("asking", "reply", xid, routing_key="answers")
    story.step("asking", "succeeded", xid=xid)
    story.ack(50)
    story.relay(reply, tag=50)
    story.tell(Received(kind="reply", name="plain", id="asking", state="succeeded"))
    assert check(story.end()).is_clean

    story.recording.received.pop()
    assert check(story.recording).violated == ["I7"]

    story.recording.history_outbox = [each for each in story.recording.history_outbox if each.kind != "reply"]
    assert check(story.recording).violated == ["I7"]


def test_a_child_of_a_run_that_was_released_is_not_missed(story: Story) -> None:
    story.publish("parent")
    story.deliver("parent", tag=50)
    story.claim("parent")
    story.run("parent")
    story.send_child("parent", "parent.1.released", kind="event")
    copy = story.release("parent")
    story.ack(50)
    story.relay(copy, tag=50)
    story.deliver("parent", tag=51, epoch=1)
    story.claim("parent")
    story.run("parent")
    story.send_child("parent", "parent.1", kind="event")
    story.succeed("parent")
    story.ack(51)
    story.tell(Received(kind="event", child_id="parent.1"))
    assert check(story.end()).is_clean

    story.tell(Received(kind="event", child_id="parent.1.released"))
    assert check(story.recording).violated == ["I7"]


def parent(story: Story, *, kind: str) -> None:
    """A task whose first attempt fails and whose second succeeds; each sends a child."""
    story.publish("parent")
    story.deliver("parent", tag=50)
    story.claim("parent")
    story.run("parent")
    story.send_child("parent", "parent.1", kind=kind)
    copy = story.fail("parent")
    story.ack(50)
    story.relay(copy, tag=50)
    story.deliver("parent", tag=51, epoch=1)
    story.claim("parent")
    story.run("parent")
    story.send_child("parent", "parent.2", kind=kind)
    story.succeed("parent")
    story.ack(51)


@pytest.mark.parametrize(
    ("arrived", "violated"),
    [(["parent.2"], []), ([], ["I7"]), (["parent.1", "parent.2"], ["I7"]), (["parent.2", "parent.2"], [])],
)
def test_the_events_of_the_attempt_that_was_committed_arrive_and_no_others(
    story: Story, arrived: list[str], violated: list[str]
) -> None:
    parent(story, kind="event")
    for child in arrived:
        story.tell(Received(kind="event", child_id=child))

    assert check(story.end()).violated == violated


@pytest.mark.parametrize(("child", "violated"), [("parent.1", ["I7"]), ("parent.2", [])])
def test_a_task_that_a_rolled_back_attempt_sent_is_a_ghost(
    story: Story, child: str, violated: list[str]
) -> None:
    parent(story, kind="task")
    for each in {"parent.2", child}:
        story.claim(each)
        story.run(each)
        story.succeed(each)

    assert check(story.end()).violated == violated

"""Acks before their commit, and deletions before their confirm: I4, I5."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.checker import check
from tests.support.stories import ALICE, BOB, Story, everything, plain


@pytest.fixture
def story() -> Story:
    return everything()


def begun(story: Story, id_: str, *, tag: int) -> None:
    story.publish(id_)
    story.deliver(id_, tag=tag)
    story.claim(id_)
    story.run(id_)


def test_an_ack_before_the_commit_of_the_end_is_told(story: Story) -> None:
    begun(story, "early", tag=50)
    story.ack(50)
    story.succeed("early")

    assert check(story.end()).violated == ["I4"]


def test_an_ack_before_any_row_is_told(story: Story) -> None:
    story.publish("early")
    story.deliver("early", tag=50)
    story.ack(50)
    story.claim("early")
    story.run("early")
    story.succeed("early")

    assert check(story.end()).violated == ["I4"]


def test_an_ack_of_many_is_of_each(story: Story) -> None:
    begun(story, "first", tag=50)
    begun(story, "second", tag=51)
    story.succeed("second")
    story.ack(51, multiple=True)
    story.succeed("first")

    verdict = check(story.end())

    assert verdict.violated == ["I4"]
    assert [each.task for each in verdict.violations] == [story.task("first")]


@pytest.mark.parametrize("kind", ["reject", "nack"])
def test_to_refuse_a_delivery_for_good_is_to_forget_it(story: Story, kind: str) -> None:
    begun(story, "refused", tag=50)
    story.ack(50, kind=kind)
    story.succeed("refused")

    assert check(story.end()).violated == ["I4"]


def test_to_give_a_delivery_back_forgets_nothing(story: Story) -> None:
    begun(story, "given back", tag=50)
    story.ack(50, kind="nack", requeue=True)
    story.deliver("given back", tag=51, redelivered=True)
    story.succeed("given back")
    story.ack(51)

    assert check(story.end()).is_clean


def test_an_ack_of_a_tag_that_is_not_unsettled_is_told(story: Story) -> None:
    story.ack(1, of=BOB)

    assert check(story.end()).violated == ["I4"]


def test_a_tag_means_nothing_on_the_next_channel(story: Story) -> None:
    begun(story, "old", tag=50)
    story.ack(0, kind="channel_lost")
    story.deliver("old", tag=1, redelivered=True)
    story.succeed("old")
    story.ack(50)
    story.ack(1)

    assert check(story.end()).violated == ["I4"]


@pytest.mark.parametrize("kind", ["channel_lost", "lost"])
def test_an_ack_that_was_on_its_way_when_the_channel_was_closed_settles_nothing(
    story: Story, kind: str
) -> None:
    begun(story, "old", tag=50)
    story.ack(0, kind=kind)
    story.ack(50)
    story.deliver("old", tag=1, to=BOB, redelivered=True)
    story.step("old", "running", new_body=True)
    story.ack(1, of=BOB)
    story.succeed("old")

    assert check(story.end()).is_clean


def test_a_task_that_runs_may_be_acked_where_its_row_has_the_body(story: Story) -> None:
    begun(story, "held", tag=50)
    story.step("held", "running", new_body=True)
    story.ack(50)
    story.succeed("held")

    assert check(story.end()).is_clean


def test_a_task_that_runs_may_be_acked_where_the_broker_has_another_message(story: Story) -> None:
    begun(story, "held", tag=50)
    story.publish("held")
    story.deliver("held", tag=51)
    story.ack(51)
    story.succeed("held")
    story.ack(50)

    assert check(story.end()).is_clean


def test_a_message_on_a_lost_channel_is_the_brokers_again(story: Story) -> None:
    begun(story, "held", tag=50)
    story.publish("held")
    story.deliver("held", tag=1, to=BOB)
    story.lose(ALICE)
    story.ack(1, of=BOB)
    story.succeed("held")
    story.deliver("held", tag=2, to=BOB, redelivered=True)
    story.ack(2, of=BOB)

    assert check(story.end()).is_clean


def test_a_waiting_task_without_its_copy_in_the_outbox_must_not_be_acked(story: Story) -> None:
    begun(story, "forgotten", tag=50)
    xid = story.xid()
    story.record("forgotten", xid, "failed")
    story.step("forgotten", "retrying", xid=xid, new_body=True)
    story.ack(50)
    story.owe("forgotten", "copy", xid=story.xid())

    assert "I4" in check(story.end()).violated


def test_the_current_copy_of_a_waiting_task_must_not_be_acked(story: Story) -> None:
    begun(story, "thrown away", tag=50)
    copy = story.fail("thrown away")
    story.ack(50)
    story.relay(copy, tag=50)
    story.deliver("thrown away", tag=51, epoch=1)
    story.ack(51)
    story.claim("thrown away")
    story.run("thrown away")
    story.succeed("thrown away")

    assert check(story.end()).violated == ["I4"]


def test_an_older_copy_of_a_waiting_task_is_a_duplicate(story: Story) -> None:
    begun(story, "late", tag=50)
    copy = story.fail("late")
    story.publish("late")
    story.deliver("late", tag=51)
    story.ack(51)
    story.ack(50)
    story.relay(copy, tag=50)
    story.deliver("late", tag=52, epoch=1)
    story.claim("late")
    story.run("late")
    story.succeed("late")
    story.ack(52)

    assert check(story.end()).is_clean


def test_a_message_without_an_id_is_acked_after_its_copys_confirm(story: Story) -> None:
    for confirms_first, id_ in ((True, "right"), (False, "wrong")):
        tag = 60 + confirms_first
        story.publish("", digest=id_, body=id_)
        story.deliver("", tag=tag, digest=id_, body=id_)
        story.claim(id_, digest=id_)  # its row, which the copy will meet
        row = story.owe(id_, "copy", 0, epoch=0)
        story.send(row, tag=tag, digest=id_)
        if confirms_first:
            story.confirm(tag)
        story.ack(tag)
        if not confirms_first:
            story.confirm(tag)
        story.run(id_)
        story.succeed(id_)

    verdict = check(story.end())

    assert verdict.violated == ["I4"]
    assert len(verdict.violations) == 1


def test_a_message_that_is_no_task_is_acked_after_its_letter(story: Story) -> None:
    story.publish("broken", expects="letter")
    story.deliver("broken", tag=50)
    story.ack(50)
    story.keep("broken", "letter-broken", "malformed")

    assert check(story.end()).violated == ["I4"]


def test_a_conflict_is_acked_after_its_letter() -> None:
    story = Story()
    plain(story, "taken", tag=1)
    story.publish("taken", digest="another", body="another")
    story.deliver("taken", tag=2, digest="another", body="another")
    story.ack(2)

    assert "I4" in check(story.end()).violated


def test_our_own_dead_letter_is_acked_where_it_is_kept(story: Story) -> None:
    fields: dict[str, Any] = {"amqp_queue": "bw.dead.default", "routing_key": "default.gave_up.plain"}
    story.deliver("retried", tag=50, letter="letter-retried-2", **fields)
    story.ack(50)
    assert check(story.recording).findings["I4"].violations == []

    story.deliver("unheard of", tag=51, letter="letter-unheard-of", **fields)
    story.ack(51)
    assert check(story.recording).findings["I4"].violations != []


def test_an_outbox_row_that_is_deleted_before_the_confirm_is_told(story: Story) -> None:
    begun(story, "hasty", tag=50)
    copy = story.fail("hasty")
    story.ack(50)
    story.send(copy, tag=50)
    story.delete(copy)
    story.confirm(50)
    story.deliver("hasty", tag=51, epoch=1)
    story.claim("hasty")
    story.run("hasty")
    story.succeed("hasty")
    story.ack(51)

    assert check(story.end()).violated == ["I5"]


@pytest.mark.parametrize("answer", ["refused", "swallowed", "returned", "none"])
def test_an_outbox_row_whose_message_was_not_taken_must_stay(story: Story, answer: str) -> None:
    begun(story, "not taken", tag=50)
    copy = story.fail("not taken")
    story.ack(50)
    wire = story.send(copy, tag=50)
    if answer == "returned":
        story.confirm(0, kind="returned", message_id=wire.message_id)
        story.confirm(50)
    elif answer == "swallowed":
        story.confirm(50, is_passed=False)
    elif answer == "refused":
        story.confirm(50, kind="refused")
    story.delete(copy)
    story.deliver("not taken", tag=51, epoch=1)
    story.claim("not taken")
    story.run("not taken")
    story.succeed("not taken")
    story.ack(51)

    assert check(story.end()).violated == ["I5"]


def test_a_confirm_of_many_is_of_each(story: Story) -> None:
    copies = []
    for number, id_ in enumerate(("first", "second"), 50):
        begun(story, id_, tag=number)
        copies.append(story.fail(id_))
        story.ack(number)
        story.send(copies[-1], tag=number)
    story.confirm(51, multiple=True)
    for copy in copies:
        story.delete(copy)

    assert check(story.end()).findings["I5"].violations == []


def test_a_copy_whose_task_has_moved_on_may_be_deleted_unsent(story: Story) -> None:
    begun(story, "moved on", tag=50)
    copy = story.fail("moved on")
    story.ack(50)
    story.step("moved on", "cancelled", new_body=False)
    story.delete(copy)

    assert check(story.end()).is_clean


def test_a_dead_letter_is_confirmed_under_its_own_id(story: Story) -> None:
    begun(story, "dead", tag=50)
    letter = story.die("dead")
    story.ack(50)
    story.send(letter, tag=50, letter="another")
    story.confirm(50)
    story.delete(letter)

    assert "I5" in check(story.end()).violated


def test_what_no_queue_takes_must_come_back(story: Story) -> None:
    begun(story, "dead", tag=50)
    letter = story.die("dead")
    story.ack(50)
    story.send(letter, tag=50, mandatory=False)
    story.confirm(50)
    story.delete(letter)

    assert check(story.end()).violated == ["I5"]

"""Timelines: all that is known of one task, in order."""

from __future__ import annotations

from tests.faults.facts import Facts
from tests.faults.timelines import LONGEST, timeline
from tests.support.stories import Story, everything


def test_a_timeline_tells_a_task_from_its_publish_to_its_last_ack() -> None:
    story = everything()

    told = [each.split(maxsplit=1)[1] for each in timeline(Facts(story.end()), story.task("retried"))]

    assert [each.split()[0] for each in told] == [
        *("publish", "publish", "wire", "row", "handler", "handler"),
        *("attempt", "row", "outbox", "wire", "wire", "wire", "outbox"),
        *("wire", "row", "handler", "handler", "attempt", "row", "letter", "outbox"),
        *("wire", "wire", "witness", "wire", "outbox"),
    ]
    assert "row      new 0@0 -> running 1@1, worker alice" in told[3]


def test_faults_around_a_task_are_shown_with_it() -> None:
    story = everything()
    story.fault("broker_kill", number=1)
    story.now += 1000
    story.fault("postgres_kill", number=2)

    told = "\n".join(timeline(Facts(story.end()), story.task("twice")))

    assert "FAULT    broker_kill" in told
    assert "postgres_kill" not in told


def test_a_long_timeline_is_shortened_in_the_middle() -> None:
    story = Story()
    for _ in range(LONGEST):
        story.publish("often")

    told = timeline(Facts(story.end()), story.task("often"))

    assert len(told) == LONGEST + 1
    assert "80 more" in told[LONGEST // 2]


def test_nothing_is_known_of_a_task_that_never_was() -> None:
    story = everything()

    assert timeline(Facts(story.end()), story.task("nobody")) == []

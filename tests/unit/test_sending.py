"""What a context refuses to send, and what it makes of a task without a payload."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from broker_worker.sending import SentTask
from broker_worker.testing import RecordingHands, make_context


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"id": "x" * 201}, "the task id has 201 characters"),
        ({"id": ""}, "the task id is empty"),
        ({"id": "\0"}, "can't be stored"),
        ({"queue": "two words"}, "is no queue's name"),
        ({"queue": ""}, "is no queue's name"),
        ({"delay": -1}, "is not negative"),
        ({"delay": timedelta(days=999_999)}, "at most 3650 days"),
    ],
    ids=range(7),
)
def test_a_task_that_could_not_be_read_where_it_arrives_is_not_sent(
    wrong: dict[str, object], says: str
) -> None:
    context = make_context()

    with pytest.raises(ValueError, match=says):
        asyncio.run(context.send("other", {}, **wrong))  # type: ignore[arg-type]  # what is wrong with it

    assert isinstance(context.hands, RecordingHands)
    assert context.hands.sent == []


@pytest.mark.parametrize("key", ["x" * 256, "\0"], ids=["long", "nul"])
def test_an_event_that_amqp_can_not_carry_is_not_sent(key: str) -> None:
    context = make_context()

    with pytest.raises(ValueError, match="an exchange and a routing key"):
        asyncio.run(context.send_event({}, exchange="shop", routing_key=key))


def test_a_task_without_a_payload_is_sent_an_empty_object() -> None:
    context = make_context()

    asyncio.run(context.send("other"))

    assert isinstance(context.hands, RecordingHands)
    (sent,) = context.hands.sent
    assert isinstance(sent, SentTask)
    assert sent.message.body == b"{}"

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest

from broker_worker.message import Properties, TaskId
from broker_worker.outcome import Failure, Reason
from broker_worker.outgoing import Kind
from broker_worker.reply import is_allowed, reply_outgoing
from broker_worker.task import Task, TaskState

TASK = Task(
    1,
    TaskId("email", "email.send", "m-1"),
    TaskState.SUCCEEDED,
    2,
    3,
    5,
    UUID(int=1),
    b"",
    reply_to="answers",
    correlation_id="c-1",
)


@pytest.mark.parametrize(
    ("reply_to", "patterns", "expected"),
    [
        (None, ["*"], False),
        ("answers", [], False),
        ("answers", ["answers"], True),
        ("Answers", ["answers"], False),
        ("answers", ["other", "answers"], True),
        ("answers.7", ["answers.*"], True),
        ("xanswers", ["answers*"], False),
        ("amq.rabbitmq.reply-to.g1", ["amq.rabbitmq.reply-to*"], True),
        ("a\0", ["*"], False),
        ("", [""], True),
    ],
)
def test_replies_go_only_where_a_pattern_allows(
    reply_to: str | None, patterns: list[str], *, expected: bool
) -> None:
    assert is_allowed(reply_to, patterns) is expected


def test_a_reply_of_a_success_holds_the_result() -> None:
    outgoing = reply_outgoing(TASK, failure=None, result='{"a": [1]}')

    assert (outgoing.kind, outgoing.routing_key) == (Kind.REPLY, "answers")
    assert outgoing.properties == Properties(content_type="application/json", correlation_id="c-1")
    assert json.loads(outgoing.body) == {
        "id": "m-1",
        "name": "email.send",
        "state": "succeeded",
        "attempt": 2,
        "reason": None,
        "error_type": None,
        "result": {"a": [1]},
    }


def test_a_reply_of_a_failure_holds_its_reason_and_the_type_of_its_error_only() -> None:
    dead = replace(TASK, state=TaskState.DEAD, reason=Reason.GAVE_UP)

    answer = json.loads(reply_outgoing(dead, failure=Failure("ValueError", "secret"), result=None).body)

    assert (answer["state"], answer["reason"], answer["error_type"]) == ("dead", "gave_up", "ValueError")
    assert answer["result"] is None
    assert "secret" not in str(answer)

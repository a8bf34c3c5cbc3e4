from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_worker.dead_letter import (
    LETTER_ID,
    DeadLetter,
    carried_properties,
    letter_key,
    letter_of_stranger,
    letter_of_task,
    letter_outgoing,
    letter_properties,
    properties_record,
)
from broker_worker.message import ATTEMPT, EPOCH, TASK_ID, Message, Properties, TaskId
from broker_worker.outcome import Failure, Reason
from broker_worker.outgoing import Kind

NOW = datetime(2030, 1, 1, tzinfo=UTC)
FAILURE = Failure("ValueError", "no", "trace", "f1")
MESSAGE = Message(
    TaskId("email", "email.send", "m-1"),
    b"\xff\x00",
    content_type="text/plain",
    correlation_id="c",
    reply_to="r",
    app_id="a",
    user_id="u",
    published_at=NOW,
    headers={"tenant-id": "t", "when": NOW, "raw": b"\0"},
)


def letter(
    message: Message = MESSAGE, *, reason: Reason = Reason.GAVE_UP, epoch: int = 5, attempt: int = 3
) -> DeadLetter:
    return letter_of_task(message, reason=reason, failure=FAILURE, attempt=attempt, epoch=epoch, task_key=7)


def test_the_letter_of_a_task_written_twice_is_the_same_letter() -> None:
    assert letter() == letter()
    assert letter(attempt=1).id == letter().id


@pytest.mark.parametrize(
    "other",
    [
        letter(epoch=6),
        letter(reason=Reason.TIMEOUT),
        letter(replace(MESSAGE, task=TaskId("sms", "email.send", "m-1"))),
        letter(replace(MESSAGE, task=TaskId("email", "email.sent", "m-1"))),
        letter(replace(MESSAGE, task=TaskId("email", "email.send", "m-2"))),
    ],
    ids=["epoch", "reason", "queue", "name", "id"],
)
def test_what_differs_in_epoch_reason_or_identity_is_another_letter(other: DeadLetter) -> None:
    assert other.id != letter().id


def test_only_in_a_conflict_the_body_tells_letters_apart() -> None:
    other = replace(MESSAGE, body=b"other")

    assert letter(other).id == letter().id
    assert letter(other, reason=Reason.CONFLICT).id != letter(reason=Reason.CONFLICT).id


def test_a_strangers_letter_is_a_new_one_each_time() -> None:
    properties = Properties(type="x", message_id="m", broken="a bomb")

    first, second = (
        letter_of_stranger(properties, b"b", queue="email", reason=Reason.MALFORMED, failure=FAILURE)
        for _ in range(2)
    )

    assert first.id != second.id
    assert (first.name, first.message_id, first.body) == ("x", "m", b"b")
    assert first.record["broken"] == "a bomb"


def test_a_letter_carries_the_body_and_says_why() -> None:
    outgoing = letter_outgoing(letter(), worker="w-1", failed_at=NOW)

    assert (outgoing.kind, outgoing.routing_key) == (Kind.DEAD_LETTER, "email.gave_up.email.send")
    assert outgoing.body == b"\xff\x00"
    assert outgoing.properties == Properties(
        type="email.send",
        content_type="text/plain",
        correlation_id="c",
        reply_to="r",
        app_id="a",
        timestamp=NOW,
        headers={
            "tenant-id": "t",
            "when": NOW,
            "raw": b"\0",
            TASK_ID: "m-1",
            EPOCH: 5,
            ATTEMPT: 3,
            LETTER_ID: str(letter().id),
            "bw-reason": "gave_up",
            "bw-error-type": "ValueError",
            "bw-error-message": "no",
            "bw-fingerprint": "f1",
            "bw-failed-at": NOW.isoformat(),
            "bw-worker": "w-1",
        },
    )


def test_a_traceback_stays_in_the_database() -> None:
    properties = letter_properties(letter(), worker="w", failed_at=NOW)

    assert "trace" not in properties.headers.values()


def test_a_publishers_headers_can_not_forge_ours() -> None:
    forged = replace(MESSAGE, headers={"bw-reason": "lost", LETTER_ID: "x"})

    headers = letter_properties(letter(forged), worker="w", failed_at=NOW).headers

    assert (headers["bw-reason"], headers[LETTER_ID]) == ("gave_up", str(letter(forged).id))


def test_a_letter_without_an_id_has_no_id_header() -> None:
    stranger = letter_of_stranger(Properties(), b"", queue="email", reason=Reason.MALFORMED, failure=FAILURE)

    assert TASK_ID not in letter_properties(stranger, worker="w", failed_at=NOW).headers
    assert letter_key(stranger) == "email.malformed.unknown"


@given(st.text(min_size=1, max_size=300) | st.text("a\0\ud800", min_size=1))
def test_a_routing_key_is_never_longer_than_amqp_can_carry(name: str) -> None:
    key = letter_key(replace(letter(), name=name))

    assert key.startswith("email.gave_up.")
    assert len(key.encode()) <= 255
    assert "\0" not in key


@pytest.mark.parametrize("name", ["n" * 200, "ü" * 200, "x" + "😀" * 199], ids=["one", "two", "four"])
def test_the_longest_names_make_a_key_that_is_cut_between_characters(name: str) -> None:
    key = letter_key(replace(letter(), name=name, queue="q" * 60))

    assert 252 <= len(key.encode()) <= 255
    assert f"{'q' * 60}.gave_up.{name}".startswith(key)


def test_properties_survive_being_stored_as_json() -> None:
    properties = Properties(
        type="x",
        message_id="m",
        content_type="t",
        content_encoding="gzip",
        correlation_id="c",
        reply_to="r",
        expiration="9",
        timestamp=NOW,
        app_id="a",
        headers={"d": Decimal("1.0"), "b": b"\0", "t": NOW, "n": None},
    )

    stored = json.loads(json.dumps(properties_record(properties)))

    assert carried_properties(stored) == properties


def test_a_record_that_is_empty_carries_nothing() -> None:
    assert carried_properties({}) == Properties()


def test_a_letters_id_is_for_ever() -> None:
    """Other releases have stored it: a change here makes second letters of old ones."""
    assert letter().id == UUID("57d903b6-87db-5222-a5ff-85905539e726")

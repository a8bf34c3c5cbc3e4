"""Signatures of messages: who signed it, what of it, and what is made of the others."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from broker_worker.errors import ConfigurationError
from broker_worker.message import (
    Message,
    Properties,
    TaskId,
    Undecodable,
    copy_properties,
    decode,
    stamped_properties,
)
from broker_worker.outcome import Reason
from broker_worker.outgoing import Kind, Outgoing, copy_outgoing
from broker_worker.signing import (
    READ_AGAIN,
    Keyring,
    Signatures,
    UnsignableError,
    read_keys,
    signed,
    signed_copy,
    signed_text,
)

KEYS = "2026a:correct-horse-battery,2025b:staple-in-the-drawer"
BODY = b'{"to": "ada@example.org"}'
BY_OPENSSL = "e18dbb049ec8d5499eba19c679a33fdb8ba71c78ce88e6d9843cab0c4ff35b3c"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TASK = TaskId("default", "email.send", "ada-1")
PLAIN = Properties(type="email.send", content_type="application/json", headers={"bw-task-id": "ada-1"})
MESSAGE = Message(task=TASK, body=BODY, content_type="application/json", headers={"a": "b"})


def keyring(keys: str = KEYS) -> Keyring:
    return Keyring(lambda: keys)


def a_signed(*, keys: str = KEYS, headers: dict[str, object] | None = None, **properties: str) -> Outgoing:
    return signed(
        Outgoing(
            Kind.COPY,
            "default",
            replace(PLAIN, headers={**PLAIN.headers, **(headers or {})}, **properties),  # type: ignore[arg-type]
            BODY,
        ),
        keyring(keys),
    )


def with_headers(outgoing: Outgoing, **headers: object) -> Outgoing:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return replace(
        outgoing,
        properties=replace(outgoing.properties, headers={**outgoing.properties.headers, **given}),
    )


def doubt(outgoing: Outgoing, *, keys: str = KEYS, required: str = "*") -> Undecodable | None:
    """What a worker finds in an arrival of this."""
    found = decode(
        outgoing.properties, outgoing.body, queue=outgoing.routing_key, now=NOW, max_body_bytes=1000
    )
    return Signatures(keyring(keys), [required]).doubt(
        found, queue=outgoing.routing_key, properties=outgoing.properties, body=outgoing.body
    )


# --- what is signed --------------------------------------------------------------------------


def test_a_signature_is_what_openssl_makes_of_the_documented_text() -> None:
    headers = a_signed().properties.headers

    assert (headers["signature-key"], headers["signature"]) == ("2026a", BY_OPENSSL)


def test_everything_that_is_there_and_trusted_has_its_line() -> None:
    properties = Properties(
        content_type="application/json",
        reply_to="reply.ada",
        headers={
            "not-after": datetime(2026, 2, 1, tzinfo=UTC),
            "deliver-at": 1770000000,
            "tenant-id": "acme",
            "bw-epoch": 3,
            "another": "is not covered",
        },
    )

    assert signed_text(TASK, properties, b"").decode().splitlines() == [
        "bw1",
        "queue=default",
        "type=email.send",
        "id=ada-1",
        "content-type=application/json",
        "reply-to=reply.ada",
        "not-after=1769904000",
        "deliver-at=1770000000",
        "tenant-id=acme",
        "epoch=3",
        f"body={hashlib.sha256(b'').hexdigest()}",
    ]


@pytest.mark.parametrize("value", ["a\nid=another", 1.5, b"bytes", True, "\ud800"])
def test_what_could_be_read_in_two_ways_is_not_signed(value: object) -> None:
    with pytest.raises(UnsignableError):
        a_signed(headers={"tenant-id": value})


# --- what is believed ------------------------------------------------------------------------


def test_a_signed_message_is_not_doubted() -> None:
    assert doubt(a_signed()) is None


def test_each_of_the_keys_verifies_so_that_they_can_be_rotated() -> None:
    by_the_old_key = a_signed(keys="2025b:staple-in-the-drawer")

    assert doubt(by_the_old_key) is None
    assert doubt(by_the_old_key, keys="2026a:correct-horse-battery") is not None


FORGERIES = {
    "no signature": lambda outgoing: replace(outgoing, properties=PLAIN),
    "another body": lambda outgoing: replace(outgoing, body=b'{"to": "eve@example.org"}'),
    "another queue": lambda outgoing: replace(outgoing, routing_key="payments"),
    "another id": lambda outgoing: with_headers(outgoing, bw_task_id="ada-2"),
    "another task": lambda outgoing: replace(
        outgoing, properties=replace(outgoing.properties, type="email.delete")
    ),
    "another content type": lambda outgoing: replace(
        outgoing, properties=replace(outgoing.properties, content_type="application/x+json")
    ),
    "another reply": lambda outgoing: replace(
        outgoing, properties=replace(outgoing.properties, reply_to="reply.eve")
    ),
    "another end": lambda outgoing: with_headers(outgoing, not_after="2030-01-01"),
    "another beginning": lambda outgoing: with_headers(outgoing, deliver_at="2030-01-01"),
    "another tenant": lambda outgoing: with_headers(outgoing, tenant_id="eve"),
    "a tenant of two lines": lambda outgoing: with_headers(outgoing, tenant_id="eve\nbody=0"),
    "an epoch": lambda outgoing: with_headers(outgoing, bw_epoch=1),
    "an epoch with the publisher's signature": lambda outgoing: with_headers(
        outgoing, bw_epoch=1, bw_signature=BY_OPENSSL, bw_signature_key="2026a"
    ),
    "a key that is not known": lambda outgoing: with_headers(outgoing, signature_key="2024c"),
    "the other key's name": lambda outgoing: with_headers(outgoing, signature_key="2025b"),
    "no key": lambda outgoing: with_headers(outgoing, signature_key=None),
    "a key that is no text": lambda outgoing: with_headers(outgoing, signature_key=7),
    "no algorithm": lambda outgoing: with_headers(outgoing, signature="none"),
    "an empty signature": lambda outgoing: with_headers(outgoing, signature=""),
    "a signature of other letters": lambda outgoing: with_headers(outgoing, signature="ü" * 64),
    "a signature of no letters": lambda outgoing: with_headers(outgoing, signature="\udc80"),
    "half a signature": lambda outgoing: with_headers(outgoing, signature=BY_OPENSSL[:32]),
    "a signature in bytes": lambda outgoing: with_headers(outgoing, signature=BY_OPENSSL.encode()),
    "a plain hash": lambda outgoing: with_headers(outgoing, signature=hashlib.sha256(BODY).hexdigest()),
    "a key of the attacker's": lambda outgoing: with_headers(
        outgoing, signature=hmac.new(b"", signed_text(TASK, PLAIN, BODY), "sha256").hexdigest()
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_message_that_is_not_as_it_was_signed_is_refused(forgery: str) -> None:
    found = doubt(FORGERIES[forgery](a_signed()))  # type: ignore[no-untyped-call]

    assert found is not None
    assert found.reason is Reason.BAD_SIGNATURE


def test_a_message_without_an_id_is_refused_because_its_copy_would_be_another() -> None:
    found = doubt(replace(a_signed(), properties=replace(PLAIN, headers={})))

    assert found is not None
    assert found.reason is Reason.BAD_SIGNATURE


def test_an_unsigned_message_that_is_broken_as_well_is_refused_for_that_and_is_no_task() -> None:
    found = doubt(replace(a_signed(), body=b"x" * 1001))

    assert found is not None
    assert found.reason is Reason.OVERSIZE


def test_a_queue_that_asks_for_no_signatures_takes_what_it_is_sent() -> None:
    assert doubt(replace(a_signed(), properties=PLAIN), required="pay*") is None
    assert doubt(replace(a_signed(), properties=PLAIN, routing_key="payments"), required="pay*") is not None


# --- our own copies ----------------------------------------------------------------------------


def test_a_copy_of_a_task_is_vouched_for_by_the_worker_whatever_the_publisher_signed() -> None:
    copy = signed_copy(copy_outgoing(MESSAGE, epoch=2, attempt=1), keyring())

    assert doubt(copy) is None
    assert doubt(with_headers(copy, bw_epoch=3)) is not None
    assert doubt(replace(copy, body=b"{}")) is not None


def test_a_copy_that_nobody_vouched_for_is_refused() -> None:
    assert doubt(copy_outgoing(MESSAGE, epoch=2, attempt=1)) is not None


def test_handlers_see_the_publishers_signature_and_never_ours() -> None:
    copy = signed_copy(copy_outgoing(MESSAGE, epoch=2, attempt=1), keyring())
    found = decode(copy.properties, copy.body, queue="default", now=NOW, max_body_bytes=1000)

    assert isinstance(found, Message)
    assert found.headers == MESSAGE.headers


@pytest.mark.parametrize(
    "outgoing",
    [
        Outgoing(Kind.COPY, "default", PLAIN, BODY),  # a letter that goes back to its queue as it came
        Outgoing(
            Kind.COPY,
            "default",
            stamped_properties(PLAIN, name="email.send", task_id="new", now=NOW),
            BODY,
        ),
        Outgoing(Kind.EVENT, "key", copy_properties(MESSAGE, epoch=2, attempt=1), BODY),
        Outgoing(Kind.DEAD_LETTER, "key", copy_properties(MESSAGE, epoch=2, attempt=1), BODY),
    ],
)
def test_nothing_but_a_copy_of_a_known_task_is_vouched_for(outgoing: Outgoing) -> None:
    assert signed_copy(outgoing, keyring()) is outgoing


def test_a_copy_that_can_not_be_signed_leaves_as_it_is() -> None:
    copy = copy_outgoing(replace(MESSAGE, headers={"tenant-id": 1.5}), epoch=2, attempt=1)

    assert signed_copy(copy, keyring()) is copy


# --- keys ----------------------------------------------------------------------------------------


def test_keys_are_read_again_after_a_while_and_kept_where_that_fails() -> None:
    texts, now = [KEYS], [0.0]

    def reveal() -> str:
        if not texts:
            raise ConfigurationError("the file is not there")
        return texts[-1]

    ring = Keyring(reveal, monotonic=lambda: now[0])
    texts[:] = ["2027c:a-completely-new-one"]
    assert list(ring.keys) == ["2026a", "2025b"]

    now[0] += READ_AGAIN
    assert list(ring.keys) == ["2027c"]

    texts.clear()
    now[0] += READ_AGAIN
    assert list(ring.keys) == ["2027c"]


def test_a_secret_may_have_any_characters_but_commas_and_spaces() -> None:
    assert read_keys(" a:0123456789:/+=äöü , b.2:fedcba9876543210") == {
        "a": "0123456789:/+=äöü".encode(),
        "b.2": b"fedcba9876543210",
    }


def test_keys_that_are_none_are_refused_without_showing_them() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_keys("id:too-short")

    assert "too-short" not in str(caught.value)


def test_keys_that_can_not_be_read_again_are_told_once_each_time() -> None:
    texts, now = [KEYS], [0.0]
    told: list[str] = []
    ring = Keyring(lambda: texts[-1], report=told.append, monotonic=lambda: now[0])

    for text in ("new:too-short", "new:too-short", KEYS, "new:too-short"):
        texts.append(text)
        now[0] += READ_AGAIN
        assert list(ring.keys) == ["2026a", "2025b"]

    assert len(told) == 2
    assert "too-short" not in "".join(told)


def test_patterns_that_fit_no_queue_are_found() -> None:
    signatures = Signatures(keyring(), ["pay*", "Pay", "mail"])

    assert signatures.idle_patterns(["payments", "email"]) == ["Pay", "mail"]

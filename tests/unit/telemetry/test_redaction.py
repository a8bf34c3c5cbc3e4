"""What is masked of the secrets that are known."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker_worker.failure import describe
from broker_worker.outcome import Dead, Outcome, Postponed, Reason, Succeeded
from broker_worker.telemetry.redaction import Redactor

PASSWORD = "p@ss%?#/w0rd"
URL = "postgresql://worker:p%40ss%25%3F%23%2Fw0rd@db/app?x=a@b"


@pytest.mark.parametrize("text", [PASSWORD, "p%40ss%25%3F%23%2Fw0rd", URL, repr(PASSWORD)])
def test_a_password_is_masked_however_it_is_spelt(text: str) -> None:
    assert "w0rd" not in Redactor([URL]).text(f"connecting with {text}!")


@pytest.mark.parametrize(
    ("secret", "part"),
    [
        ("postgresql://db/app?password=by-parameter", "by-parameter"),
        ("postgresql://db/app?sslkey=/k.pem&sslpassword=of%20the%20key", "of the key"),
        ("amqps://u:first@h/?keyfile=/k.pem&password=of-the-key", "of-the-key"),
        ("2026a:the-first-signing-key,2025b:the-second-signing-key", "the-second-signing-key"),
        ("2026a:the-first-signing-key , 2025b:the-second-signing-key", "the-first-signing-key"),
        ("2026a:the-first://signing-key,2025b:the-second-signing-key", "the-second-signing-key"),
    ],
)
def test_what_is_secret_by_itself_within_a_setting_is_masked_alone(secret: str, part: str) -> None:
    shown = Redactor([secret]).text(f"it was {part}, from /k.pem")

    assert part not in shown
    assert "/k.pem" in shown


def test_what_was_learnt_later_is_masked_in_texts_that_were_seen_before() -> None:
    redactor = Redactor()
    assert redactor.text("it was rotated-secret") == "it was rotated-secret"

    redactor.learn("rotated-secret")

    assert redactor.text("it was rotated-secret") == "it was ***"


def test_a_text_that_was_being_masked_when_a_secret_was_learnt_is_not_remembered() -> None:
    redactor = Redactor()
    masked = redactor._masked

    def meanwhile(text: str) -> str:
        shown = masked(text)
        redactor.learn("rotated-secret")
        return shown

    redactor._masked = meanwhile  # type: ignore[method-assign]  # another thread learns at this moment
    redactor.text("it was rotated-secret")
    redactor._masked = masked  # type: ignore[method-assign]

    assert redactor.text("it was rotated-secret") == "it was ***"


@pytest.mark.parametrize("text", ["cannot reach amqp://u:canary-pass…", "…\nnary-password@h, of all hosts"])
def test_half_a_secret_is_masked_where_a_text_was_cut(text: str) -> None:
    shown = Redactor(["amqp://u:canary-password@h"]).text(text)

    assert "nary" not in shown
    assert "pass" not in shown


@pytest.mark.parametrize("is_last", [True, False])
def test_what_is_kept_of_a_failure_is_masked_in_its_message_and_its_traceback(is_last: bool) -> None:
    try:
        raise ConnectionError(f"no access for {PASSWORD}") from ValueError(URL)  # noqa: TRY301 - to be caught
    except ConnectionError as error:
        failure = describe(error)
    outcome: Outcome = (
        Dead(Reason.GAVE_UP, failure) if is_last else Postponed(timedelta(seconds=1), failure, None)
    )

    kept = Redactor([URL]).outcome(outcome)

    assert isinstance(kept, Dead | Postponed)
    assert kept.failure.message == "no access for ***"
    assert "Traceback" in str(kept.failure.traceback)
    assert "w0rd" not in str(kept.failure.traceback)
    assert kept.failure.fingerprint == failure.fingerprint


def test_what_a_handler_returns_is_its_own() -> None:
    assert Redactor([URL]).outcome(Succeeded(f'"{PASSWORD}"')) == Succeeded(f'"{PASSWORD}"')

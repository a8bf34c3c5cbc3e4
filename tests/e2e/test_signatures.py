"""A queue that asks for signatures: what is signed runs, what is not leaves no trace among the tasks."""

from __future__ import annotations

import hashlib
import hmac
import re
import subprocess
from pathlib import Path

import aio_pika
import pytest

from broker_worker.client import SyncClient
from tests.e2e.conftest import Service, message
from tests.support.daemon import ROOT, until

pytestmark = pytest.mark.timeout(300)

KEYS = {"old": "staple-in-the-drawer", "new": "correct-horse-battery"}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTRACT = ROOT / "docs" / "message-contract.md"


def keys(*ids: str) -> str:
    return ",".join(f"{each}:{KEYS[each]}" for each in ids)


def sign(given: aio_pika.Message, *, by: str = "old", queue: str = "default") -> aio_pika.Message:
    """Sign as a program does that knows nothing of ours but the documentation."""
    digest = hashlib.sha256(given.body).hexdigest()
    lines = ["bw1", f"queue={queue}", f"type={given.type}", f"id={given.message_id}", f"body={digest}"]
    given.headers["signature"] = hmac.new(KEYS[by].encode(), "\n".join(lines).encode(), "sha256").hexdigest()
    given.headers["signature-key"] = by
    return given


@pytest.fixture
def guarded(service: Service) -> Service:
    service.settings = {"SIGNING_KEYS": keys("old"), "REQUIRE_SIGNATURES": "*"}
    return service


def refused(service: Service) -> list[tuple[str | None, str | None, str]]:
    rows = service.rows("SELECT name, message_id, reason FROM dead_letters ORDER BY message_id")
    return [(row["name"], row["message_id"], row["reason"]) for row in rows]


def until_refused(service: Service, count: int) -> None:
    """Wait for so many letters: while the last is written, its queue is empty already."""
    until(f"{count} are refused", lambda: len(refused(service)) >= count)


def test_what_is_signed_runs_and_what_is_not_is_a_dead_letter_without_a_row(guarded: Service) -> None:
    guarded.start()
    changed = sign(message("double", "changed", {"x": 1}))
    changed.body = b'{"x": 2}'

    guarded.publish(
        message("double", "not signed", {"x": 1}),
        sign(message("double", "of another key", {"x": 1}), by="new"),
        sign(message("double", "for another queue", {"x": 1}), queue="other"),
        changed,
        message("double", None, {"x": 1}),
        sign(message("double", "good", {"x": 1})),
    )
    guarded.until_states(succeeded=1)
    until_refused(guarded, 5)
    guarded.until_rest()

    assert guarded.task("good")["result"] == "2"
    assert {(name, reason) for name, _, reason in refused(guarded)} == {("double", "bad_signature")}
    assert len(refused(guarded)) == 5


def test_a_forgery_under_a_tasks_id_keeps_the_task_neither_from_beginning_nor_from_its_end(
    guarded: Service,
) -> None:
    guarded.start()
    guarded.publish(message("gated", "taken"))  # before its owner, who has the key
    until_refused(guarded, 1)
    guarded.publish(sign(message("gated", "taken")))
    guarded.until_states(running=1)
    guarded.publish(message("gated", "taken"), message("gated", "taken", {"another": "body"}))
    until_refused(guarded, 3)

    guarded.gate.touch()
    guarded.until_states(succeeded=1)

    assert guarded.runs()["taken"] == 1
    assert [reason for _, _, reason in refused(guarded)] == ["bad_signature"] * 3


def test_retries_take_overs_replays_and_what_handlers_send_are_vouched_for_by_the_worker(
    guarded: Service,
) -> None:
    guarded.settings["QUEUES"] = "default:16,other:4"
    worker = guarded.start()
    guarded.publish(
        sign(message("fails_once", "retried")),
        sign(message("always_fails", "replayed")),
        sign(message("kills_once", "crashed")),
    )
    worker.wait()
    guarded.start(HANDLERS="tests.support.handlers,tests.support.sending_handlers")
    guarded.publish(sign(message("first", "sender", headers={"traceparent": TRACE})))
    guarded.until_states(succeeded=5, dead=1, seconds=150)

    assert guarded.command("dead", "replay", "--reason", "attempts_exhausted", "--json")
    until("the task is dead again", lambda: guarded.runs()["replayed"] == 4)
    guarded.until_states(succeeded=5, dead=1)
    guarded.until_rest()

    assert {reason for _, _, reason in refused(guarded)} == {"attempts_exhausted"}


def test_a_key_can_be_rotated_while_tasks_wait_for_their_next_attempt(
    guarded: Service, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(keys("new", "old"))
    guarded.settings |= {"SIGNING_KEYS": "", "SIGNING_KEYS_FILE": str(file), "RETRY_DELAY": "10s"}
    worker = guarded.start()
    guarded.publish(sign(message("fails_once", "retried")))
    guarded.until_states(retrying=1)

    file.write_text(keys("new"))  # the publisher's key is gone before the second attempt
    assert worker.stop() == 0
    guarded.start()

    guarded.until_states(succeeded=1)
    assert refused(guarded) == []


def test_a_message_whose_key_was_missing_can_be_replayed_when_it_is_there(guarded: Service) -> None:
    worker = guarded.start()
    with client_of(guarded, "new") as client:
        client.publish("double", {"x": 4}, id="early")
    until_refused(guarded, 1)
    assert [reason for _, _, reason in refused(guarded)] == ["bad_signature"]
    assert worker.stop() == 0

    guarded.start(SIGNING_KEYS=keys("old", "new"))
    guarded.command("dead", "replay", "--reason", "bad_signature", "--json")

    guarded.until_states(succeeded=1)
    assert guarded.task("early")["result"] == "8"


def test_an_operators_replay_vouches_for_nothing(guarded: Service) -> None:
    guarded.start()
    guarded.publish(message("double", "forged", {"x": 4}))
    until_refused(guarded, 1)

    guarded.command("dead", "replay", "--all", "--json")
    until_refused(guarded, 2)
    guarded.until_rest()

    assert guarded.states() == {}
    assert len(refused(guarded)) == 2


def test_the_client_and_the_command_line_sign_with_the_first_key(guarded: Service) -> None:
    guarded.start()
    with client_of(guarded, "old") as client:
        client.publish("double", {"x": 1}, id="by-client", headers={"tenant-id": "acme"}, not_after=600)

    guarded.command("publish", "double", "--data", '{"x": 2}', "--id", "by-command", "--delay", "1s")

    guarded.until_states(succeeded=2)
    assert refused(guarded) == []


def client_of(service: Service, key: str) -> SyncClient:
    return SyncClient(amqp_url=service.amqp_url, prefix=service.prefix, signing_keys=keys(key))


@pytest.mark.parametrize(("language", "program"), [("js", ["node", "-e"]), ("sh", ["sh", "-c"])])
def test_the_documented_lines_make_the_same_signature_in_each_language(
    language: str, program: list[str]
) -> None:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", CONTRACT.read_text(), re.MULTILINE | re.DOTALL)
    (snippet,) = (block for block in blocks if "bw1" in block)
    (expected,) = set(re.findall(r'signature == "([0-9a-f]{64})"', CONTRACT.read_text()))

    done = subprocess.run([*program, snippet], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == expected

"""The same messages where nobody expects them: among the dead letters, for no queue, and on a terminal."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from typer.testing import CliRunner

from broker_worker.cli import app
from tests.e2e.conftest import Service, message
from tests.hostile import bodies, envelopes, headers, properties
from tests.hostile.case import DUE, EXISTING, EXPIRED, LIMIT, Case, dead
from tests.hostile.corpus import content, contents, drain, publish_all
from tests.support.daemon import DaemonProcess, until

CASES = (*bodies.CASES, *envelopes.CASES, *properties.CASES, *headers.CASES)
SHOWN = 16  # letters that are shown one by one: each is a command of its own

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def worker(service: Service) -> DaemonProcess:
    return service.start(HANDLERS="tests.hostile.handlers", MAX_BODY_BYTES=str(LIMIT))


def sent(service: Service, exchange: str, key: bytes) -> list[Case]:
    """Publish the corpus; what the broker took of it."""
    _, refused = asyncio.run(
        publish_all(service.amqp_url, CASES, exchange=f"{service.prefix}.{exchange}", key=key)
    )
    return [case for case in CASES if case.name not in refused]


def until_read(service: Service, letters: int) -> None:
    until("the letters are all in the database", lambda: count(service, "dead_letters") >= letters)
    until("the outbox is empty", lambda: not count(service, "outbox"))


def count(service: Service, what: str) -> int:
    number: int = service.rows(f"SELECT count(*) FROM {what}")[0]["count"]
    return number


def assert_kept(service: Service, cases: Sequence[Case]) -> None:
    """See that each has one letter with its body, and that what was too large is where such messages stay."""
    assert contents(service) == Counter(map(content, cases))
    large = sorted(case.body for case in cases if len(case.body) > LIMIT)
    stayed: list[bytes] = []
    queue = f"{service.prefix}.oversize"

    def arrive() -> bool:
        stayed.extend(asyncio.run(drain(service.amqp_url, queue)))
        return len(stayed) >= len(large)

    until("what was too large has arrived there", arrive)
    assert sorted(stayed) == large


def assert_still_working(service: Service, worker: DaemonProcess) -> None:
    service.publish(*(message("note", f"good {n}", {"case": f"good {n}"}) for n in range(100)))
    done = "tasks WHERE message_id LIKE 'good %' AND state = 'succeeded'"
    until("the good messages are done", lambda: count(service, done) == 100)
    assert worker.stop() == 0


def test_the_reader_of_dead_letters_keeps_each_as_it_came(service: Service, worker: DaemonProcess) -> None:
    delivered = sent(service, "dlx", b"default.of.others")

    until_read(service, len(delivered))

    assert_kept(service, delivered)
    assert not service.rows("SELECT key FROM tasks")
    assert_still_working(service, worker)


def test_what_pretends_that_the_broker_gave_it_up_is_kept_too(
    service: Service, worker: DaemonProcess
) -> None:
    delivered = sent(service, "dlx", b"default.poison")

    until_read(service, len(delivered))

    assert_kept(service, delivered)
    assert_still_working(service, worker)


def test_what_leads_to_no_queue_is_kept_or_has_expired(service: Service, worker: DaemonProcess) -> None:
    delivered = sent(service, "tasks", b"\xffno such queue")
    lost = [case for case in delivered if case.name not in headers.ROUTED_BY_THEMSELVES]
    kept = [case for case in lost if case.end != EXPIRED]

    until_read(service, len(kept))

    assert_kept(service, kept)
    expired = "tasks WHERE state = 'expired'"
    until("what is too late has expired", lambda: count(service, expired) >= len(lost) - len(kept))
    assert count(service, expired) == len(lost) - len(kept)
    assert_still_working(service, worker)


def test_keys_that_we_could_not_write_keep_nobody_from_being_read(
    service: Service, worker: DaemonProcess
) -> None:
    # 0xFF is no UTF-8: what stands for it takes three bytes each, and a key has 255 at most
    cases = [envelopes.unidentified(f"by a key that grows {n}", end=dead("unroutable")) for n in range(40)]
    asyncio.run(publish_all(service.amqp_url, cases, exchange=f"{service.prefix}.tasks", key=b"\xff" * 86))

    until_read(service, len(cases))

    assert_kept(service, cases)
    assert_still_working(service, worker)


@pytest.fixture
def with_letters(service: Service, worker: DaemonProcess) -> Iterator[Service]:
    service.publish(message("note", EXISTING, {"case": EXISTING}))
    service.until_states(succeeded=1)
    delivered = sent(service, "tasks", b"default")
    refused = [case for case in delivered if case.end.reason is not None]
    until("all that is refused has its letter", lambda: count(service, "dead_letters") >= len(refused))
    rows = 1 + sum(case.end.state is not None for case in delivered)
    until("all that is a task has its row", lambda: count(service, "tasks") >= rows)
    yield service
    assert worker.stop() == 0


def run(service: Service, *arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env=service.environment())
    assert done.exit_code == 0, done.output
    return done.stdout


def assert_harmless(shown: str) -> None:
    """See that there is nothing in it that steers a terminal, and no line but ours."""
    for line in shown.splitlines():
        assert line.replace("\t", "").isprintable(), line


def test_commands_show_them_in_lines_that_do_no_harm(with_letters: Service) -> None:
    service = with_letters
    tasks = run(service, "tasks", "list", "--limit", "1000")
    letters = run(service, "dead", "list", "--limit", "1000")
    shown = [
        json.loads(line) for line in run(service, "dead", "list", "--limit", "1000", "--json").splitlines()
    ]

    assert len(letters.splitlines()) == 1 + len(shown)
    assert len(tasks.splitlines()) == 1 + count(service, "tasks")
    for text in (tasks, letters):
        assert_harmless(text)
    odd = sorted(shown, key=lambda letter: -sum(not each.isprintable() for each in str(letter)))
    for letter in [*odd[: SHOWN // 2], *shown[: SHOWN // 2]]:
        assert_harmless(run(service, "dead", "show", letter["id"]))
        assert_harmless(run(service, "dead", "show", letter["id"], "--json"))
        if letter["task_key"] is not None:
            assert_harmless(run(service, "tasks", "show", letter["message_id"]))
            assert_harmless(run(service, "tasks", "show", letter["message_id"], "--json"))


def test_a_replay_of_all_of_them_harms_nobody(with_letters: Service) -> None:
    service = with_letters
    before = count(service, "dead_letters")

    verdicts = [json.loads(line) for line in run(service, "dead", "replay", "--all", "--json").splitlines()]

    assert len(verdicts) == before
    until("nothing is owed now", lambda: not count(service, f"outbox WHERE {DUE}"))
    until("the queue is empty", lambda: service.depth() == 0)
    refused = [verdict for verdict in verdicts if not verdict["is_done"]]
    known = ("another message still has this id", "its body was too large to be taken")
    assert all(verdict["detail"].startswith(known) for verdict in refused)

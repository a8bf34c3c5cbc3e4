"""What nobody may read: the passwords of a worker, whatever goes wrong and wherever it is written down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import aio_pika
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import ROOT, DaemonProcess, until
from tests.support.services import Broker, call_management, execute

pytestmark = pytest.mark.timeout(300)

CANARY = "Canary"  # no other text has it
PASSWORD = f"{CANARY}@%?#:/&=+ w0rd"  # what each part of a URL would end at, if it were not encoded
ROTATED = f"{CANARY}-2@%?#:/&=+ w0rd"


@pytest.fixture
def guarded(service: Service, broker: Broker) -> Iterator[Service]:
    """A service whose user has such a password for both servers, with addresses in files that may change."""
    if broker.management_url is None:
        pytest.fail("this test makes a broker user: it needs the HTTP API of RabbitMQ", pytrace=False)
    user = f"worker_{broker.prefix}".lower()
    call_management(
        broker.management_url,
        "PUT",
        f"/api/users/{user}",
        json.dumps({"password": PASSWORD, "tags": ""}).encode(),
    )
    rights = json.dumps(dict.fromkeys(("configure", "write", "read"), ".*")).encode()
    call_management(broker.management_url, "PUT", f"/api/permissions/{broker.vhost}/{user}", rights)
    execute(service.database_url, f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    admin = service.database_url
    for name, url in (("AMQP_URL", service.amqp_url), ("DATABASE_URL", service.database_url)):
        write_url(service.folder / name, url, user, PASSWORD)
    try:
        yield service
    finally:
        execute(admin, f"DROP ROLE {user}")
        call_management(broker.management_url, "DELETE", f"/api/users/{user}")


def write_url(file: Path, url: str, user: str, password: str) -> None:
    parts = urlsplit(url)
    credentials = f"{user}:{quote(password, safe='')}"
    file.write_text(parts._replace(netloc=f"{credentials}@{parts.hostname}:{parts.port}").geturl())


def settings(service: Service, **others: str) -> dict[str, str]:
    """Name the files, or what they hold instead."""
    servers = {f"{name}_FILE": str(service.folder / name) for name in ("AMQP_URL", "DATABASE_URL")}
    for name in ("AMQP_URL", "DATABASE_URL"):
        if name in others:
            del servers[f"{name}_FILE"]
    return {
        "AMQP_URL": "",
        "DATABASE_URL": "",
        **servers,
        "HANDLERS": "tests.support.leaking_handlers",
        "LOG_LEVEL": "debug",
        "DEAD_LETTERS": "queue",
        **others,
    }


def start(service: Service, *, ready: bool = True, **others: str) -> DaemonProcess:
    service.settings |= settings(service, **others)
    return service.start(ready=ready)


def written_down(service: Service) -> dict[str, str]:
    """Every row of ours as text, by table, but for payloads: those are the publisher's."""
    tables = [
        row["relname"]
        for row in service.rows(
            "SELECT relname FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'broker_worker'::regnamespace"
        )
    ]
    return {
        table: "\n".join(
            row["text"]
            for row in service.rows(
                f"SELECT ((to_jsonb(t) - 'body') - 'payload')::text AS text FROM {table} t"
            )
        )
        for table in tables
    }


def letters(service: Service) -> list[str]:
    """Take the dead letters from RabbitMQ: their properties as text."""

    async def take() -> list[str]:
        taken = []
        async with await aio_pika.connect(service.amqp_url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(f"{service.prefix}.dead.default", passive=True)
            while (letter := await queue.get(fail=False, no_ack=True)) is not None:
                taken.append(repr(letter.info()) + repr(letter.headers))
        return taken

    return asyncio.run(take())


def said(service: Service) -> str:
    return "\n".join(log.read_text() for log in service.folder.glob("daemon-*.log"))


def seen_from_outside(worker: DaemonProcess) -> str:
    """Probes, metrics, and the command lines of the worker and of its children."""
    answers = [worker.get(path)[1] for path in ("/livez", "/readyz", "/startupz", "/metrics")]
    family = [worker.process.pid, *children_of(worker.process.pid)]
    titles = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in family]
    return "\n".join([*answers, *titles])


def children_of(pid: int) -> list[int]:
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for children in found for child in children]


def command(service: Service, *arguments: str, **others: str) -> str:
    """What a command says, with these settings."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    done = subprocess.run(
        [sys.executable, "-m", "broker_worker", *arguments],
        cwd=ROOT,
        env={**base, **service.environment(**settings(service, **others))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_handlers_tell_of_their_workers_passwords_is_masked_wherever_it_is_kept(
    guarded: Service,
) -> None:
    worker = start(guarded)
    told = (guarded.folder / "DATABASE_URL").read_text()
    address = (guarded.folder / "AMQP_URL").read_text()
    cut = 1024 - address.index("@", 12)  # in the middle of it
    guarded.publish(
        message("tells_in_its_error", "e"),
        message("tells_in_the_log", "l"),
        message("tells_at_length", "c", {"spaces": cut}),
        message("tells_from_a_process", "p", {"given": ""}),
        message("tells_from_a_process", "q", {"given": told}),
    )
    guarded.until_states(succeeded=2, dead=3)
    guarded.until_rest()

    rows, messages = written_down(guarded), letters(guarded)
    outside = seen_from_outside(worker)
    listed = command(guarded, "dead", "list", "--json") + command(guarded, "tasks", "show", "e")

    assert worker.stop() == 0
    assert "can't connect to" in rows["dead_letters"]
    assert len(messages) == 3
    assert "ConnectionError" in listed
    assert "tells_in_the_log" in said(guarded)
    for text in (*rows.values(), *messages, outside, listed, said(guarded)):
        assert CANARY not in text
    result = json.loads(guarded.task("p")["result"])
    assert (result["environment"], result["sockets"]) == ([], [])


def test_a_password_that_was_rotated_is_masked_as_well(guarded: Service, broker: Broker) -> None:
    user = f"worker_{broker.prefix}".lower()
    worker = start(guarded)
    execute(guarded.database_url, f"ALTER ROLE {user} PASSWORD '{ROTATED}'")
    write_url(guarded.folder / "DATABASE_URL", guarded.database_url, user, ROTATED)
    execute(
        guarded.database_url,
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'",
    )

    guarded.publish(message("tells_in_its_error", "e"), message("tells_in_the_log", "l"))
    guarded.until_states(succeeded=1, dead=1)

    assert worker.stop() == 0
    assert "can't connect to" in written_down(guarded)["dead_letters"]
    for text in (*written_down(guarded).values(), said(guarded)):
        assert CANARY not in text


FAULTS: dict[str, Callable[[str], str]] = {
    "a wrong password": lambda url: url.replace("w0rd@", "wr0ng@"),
    "nobody there": lambda url: f"{url.rpartition(':')[0]}:1/",
    "another user": lambda url: url.replace("//worker", "//nobody"),
    "an address that is none": lambda url: url.replace("@", "@@:x"),
    "a password that is not encoded": lambda url: url.replace(quote(PASSWORD, safe=""), PASSWORD),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["AMQP_URL", "DATABASE_URL"])
def test_a_server_that_does_not_let_us_in_is_told_without_the_password(
    name: str, fault: str, guarded: Service
) -> None:
    wrong = {name: FAULTS[fault]((guarded.folder / name).read_text())}
    worker = start(guarded, ready=False, **wrong)

    until(
        "the daemon says something",
        lambda: worker.process.poll() is not None or "lost" in worker.tail() or "waiting" in worker.tail(),
    )
    outside = seen_from_outside(worker) if worker.process.poll() is None else ""
    checked = command(guarded, "check", **wrong)
    published = command(guarded, "publish", "tells_in_the_log", **wrong)
    worker.stop()

    for text in (said(guarded), outside, checked, published):
        assert CANARY not in text
        assert "Traceback" not in text

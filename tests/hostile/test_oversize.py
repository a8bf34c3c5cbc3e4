"""A body over the limit is let pass by and never held; RabbitMQ keeps it, byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aio_pika
import pytest

from broker_worker.amqp.safe_decoding import install
from broker_worker.local import PrivateRabbitMQ
from tests.e2e.conftest import Service, message
from tests.hostile.case import sent
from tests.support.daemon import DaemonProcess, until
from tests.support.raw_amqp import raw_publisher, short

MIB = 1024 * 1024
LIMIT = "64KiB"
WORTH_NOTICING = 48 * MIB  # of memory: less than one of the large bodies

pytestmark = pytest.mark.timeout(300)


def body(number: int, size: int = 200_000) -> bytes:
    return b'{"case": "%d"}' % number + b" " * (size - 12 - len(str(number)))


async def drained(url: str, queue: str) -> Counter[str]:
    """Take everything out of a queue; how often each body was there, by its digest."""
    install()  # one of them would end the library's connection
    found: Counter[str] = Counter()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        declared = await channel.get_queue(queue, ensure=False)
        while (letter := await declared.get(no_ack=True, fail=False, timeout=30)) is not None:
            found[hashlib.sha256(letter.body).hexdigest()] += 1
    return found


def digests(*bodies: bytes) -> Counter[str]:
    return Counter(hashlib.sha256(each).hexdigest() for each in bodies)


async def publish(service: Service, each: bytes, key: bytes = b"default", **properties: bytes) -> int:
    """Publish by hand; the broker's major version."""
    async with raw_publisher(service.amqp_url) as publisher:
        flags, encoded = sent(**properties)
        await publisher.publish(f"{service.prefix}.tasks", key, flags=flags, properties=encoded, body=each)
        return publisher.major


def letters(service: Service) -> list[tuple[str, str, str, int, int]]:
    """Of each letter: queue, id, reason, the bytes that were announced, the bytes that are kept."""
    return sorted(
        (
            row["queue"],
            row["message_id"] or "",
            row["reason"],
            json.loads(row["properties"])["untaken_body"]["bytes"],
            len(row["body"]),
        )
        for row in service.rows("SELECT queue, message_id, reason, properties, body FROM dead_letters")
    )


def until_set_aside(service: Service, queue: str, count: int) -> None:
    """Wait until a queue that is none of the work queues holds so many."""

    async def depth() -> int:
        async with await aio_pika.connect(service.amqp_url) as connection:
            channel = await connection.channel()
            declared = await channel.declare_queue(f"{service.prefix}.{queue}", passive=True)
            return declared.declaration_result.message_count or 0

    until(f"{count} messages in {queue}", lambda: asyncio.run(depth()) == count, seconds=150)


def start(service: Service, *, limit: str = LIMIT, dead_letters: str = "database") -> DaemonProcess:
    return service.start(HANDLERS="tests.hostile.handlers", MAX_BODY_BYTES=limit, DEAD_LETTERS=dead_letters)


def test_it_is_dead_in_the_database_and_whole_in_the_queue_for_such(service: Service) -> None:
    worker = start(service)
    service.publish(message("note", "first", {"case": "first"}))
    service.until_states(succeeded=1)

    asyncio.run(publish(service, body(1), message_type=short(b"note"), message_id=short(b"large")))

    until_set_aside(service, "oversize", 1)
    assert service.states() == {"succeeded": 1, "dead": 1}
    assert letters(service) == [("default", "large", "oversize", 200_000, 0)]
    assert service.task("large")["reason"] == "oversize"
    assert worker.stop() == 0
    assert service.depth() == 0
    assert asyncio.run(drained(service.amqp_url, f"{service.prefix}.oversize")) == digests(body(1))


def test_with_dead_letters_in_queues_it_stays_in_the_one_of_its_work_queue(service: Service) -> None:
    start(service, dead_letters="queue")

    asyncio.run(publish(service, body(1), message_type=short(b"note"), message_id=short(b"large")))

    until_set_aside(service, "dead.default", 1)
    assert letters(service) == [("default", "large", "oversize", 200_000, 0)]
    assert asyncio.run(drained(service.amqp_url, f"{service.prefix}.dead.default")) == digests(body(1))


def test_whatever_else_is_wrong_with_it_nothing_of_it_is_lost(service: Service) -> None:
    start(service)
    note = short(b"note")
    service.publish(message("note", "taken", {"case": "taken"}))
    service.until_states(succeeded=1)

    asyncio.run(publish(service, body(1), message_type=note))  # no id: it can't be stamped
    asyncio.run(publish(service, body(2), message_type=note, timestamp=struct.pack(">Q", 2**63)))
    asyncio.run(publish(service, body(3), message_type=note, message_id=short(b"taken")))
    asyncio.run(publish(service, body(4), b"nowhere", message_type=note, message_id=short(b"lost")))
    asyncio.run(publish(service, body(5)))

    until_set_aside(service, "oversize", 5)
    reasons = Counter((letter[0], letter[2]) for letter in letters(service))
    assert reasons == {
        ("default", "oversize"): 1,
        ("default", "malformed"): 2,
        ("default", "conflict"): 1,
        ("nowhere", "oversize"): 1,
    }
    kept = asyncio.run(drained(service.amqp_url, f"{service.prefix}.oversize"))
    assert kept == digests(*map(body, range(1, 6)))


def test_the_same_message_again_is_no_second_letter(service: Service) -> None:
    start(service)
    for _ in range(2):
        asyncio.run(publish(service, body(1), message_type=short(b"note"), message_id=short(b"large")))

    until_set_aside(service, "oversize", 2)
    assert letters(service) == [("default", "large", "oversize", 200_000, 0)]


def test_it_can_be_shown_and_discarded_but_not_replayed(service: Service) -> None:
    start(service)
    asyncio.run(publish(service, body(1), message_type=short(b"note"), message_id=short(b"large")))
    until_set_aside(service, "oversize", 1)
    (letter,) = service.command("dead", "list", "--json")

    (shown,) = service.command("dead", "show", str(letter["id"]), "--json")
    with pytest.raises(AssertionError, match="replayed 0, left alone 1"):
        service.command("dead", "replay", str(letter["id"]), "--json")

    assert shown["properties"]["untaken_body"]["bytes"] == 200_000  # type: ignore[index]  # JSON
    assert service.command("dead", "discard", str(letter["id"]), "--json")[0]["is_done"] is True


@pytest.fixture
def alone(private_rabbitmq: PrivateRabbitMQ, database_url: str, tmp_path: Path) -> Iterator[Service]:
    """A broker of its own: large messages can bring it near its memory limit, which stops all who publish."""
    with ExitStack() as running:
        yield Service(private_rabbitmq.amqp_url(), database_url, "bw", tmp_path, running)


def peak_memory(worker: DaemonProcess) -> int:
    """Bytes, the most since the process began."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_bodies_of_64_mebibytes_take_no_memory(alone: Service) -> None:
    worker = start(alone, limit="1MiB")
    alone.publish(message("note", "first", {"case": "first"}))
    alone.until_states(succeeded=1)
    before = peak_memory(worker)
    note = short(b"note")

    major = asyncio.run(publish(alone, body(0, 2 * MIB), message_type=note, message_id=short(b"m0")))
    count, size = (4, 64 * MIB) if major < 4 else (16, 15 * MIB)  # RabbitMQ 4 takes 16 MiB at most
    for number in range(1, count + 1):
        large = body(number, size)
        asyncio.run(publish(alone, large, message_type=note, message_id=short(b"m%d" % number)))

    until_set_aside(alone, "oversize", count + 1)
    alone.publish(message("note", "last", {"case": "last"}))
    alone.until_states(succeeded=2, dead=count + 1)
    assert peak_memory(worker) - before < WORTH_NOTICING
    assert [letter[3] for letter in letters(alone)].count(size) == count

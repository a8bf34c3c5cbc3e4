"""Send a corpus by hand, and see what became of each message."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import aio_pika
from pamqp import commands
from pamqp.exceptions import PAMQPException

from broker_worker.amqp.safe_decoding import install
from broker_worker.message import begin_digest
from tests.e2e.conftest import Service
from tests.hostile.case import LIMIT, Case, End
from tests.support.raw_amqp import RawPublisher, raw_publisher


async def publish_all(
    url: str, cases: Sequence[Case], *, exchange: str, key: bytes
) -> tuple[int, frozenset[str]]:
    """Publish every case; the broker's major version, and the names of those that it refused."""
    refused: set[str] = set()
    waiting = list(reversed(cases))
    major = 0
    while waiting:
        async with raw_publisher(url) as publisher:
            major = publisher.major
            while waiting and await _is_taken(publisher, waiting[-1], exchange, key):
                waiting.pop()
            if waiting:  # the broker has closed the channel or the connection
                refused.add(waiting.pop().name)
    return major, frozenset(refused)


async def _is_taken(publisher: RawPublisher, case: Case, exchange: str, key: bytes) -> bool:
    try:
        answer = await publisher.publish(
            exchange, key, flags=case.flags, properties=case.properties, body=case.body
        )
    except (
        asyncio.IncompleteReadError,
        ConnectionError,
        PAMQPException,
    ):  # what it says may hold bytes of ours
        return False
    return isinstance(answer, commands.Basic.Ack)


def ends(service: Service, cases: Sequence[Case]) -> Mapping[str, End]:
    """Say what the database shows of each case: one row or none, one letter or none, with one reason."""
    rows = service.rows("SELECT key, message_id, state, reason, result FROM tasks")
    by_id, by_result = defaultdict(list), defaultdict(list)
    for row in rows:
        by_id[row["message_id"]].append(row)
        by_result[json.loads(row["result"]) if row["result"] else None].append(row)
    letters = defaultdict(list)
    for letter in service.rows("SELECT task_key, reason, body, properties FROM dead_letters"):
        letters[_shown_content(letter)].append(letter)
    found = {}
    for case in cases:
        its_rows = by_id[case.task_id] if case.task_id is not None else by_result[case.name]
        its_letters = letters[content(case)]
        assert len(its_rows) <= 1, f"{case}: {len(its_rows)} rows"
        assert len(its_letters) <= 1, f"{case}: {len(its_letters)} dead letters"
        if its_letters:
            assert its_letters[0]["task_key"] == (its_rows[0]["key"] if its_rows else None), case
            assert not its_rows or its_rows[0]["reason"] == its_letters[0]["reason"], case
        found[case.name] = End(
            its_rows[0]["state"] if its_rows else None, its_letters[0]["reason"] if its_letters else None
        )
    return found


def content(case: Case) -> str:
    """Say what its dead letter has to hold: its body, or of one that is too large the digest."""
    if len(case.body) <= LIMIT:
        return case.body.hex()
    digest = begin_digest(None)
    digest.update(case.body)
    return f"untaken, {len(case.body)} bytes, {digest.hexdigest()}"


def contents(service: Service) -> Counter[str]:
    """Count what dead letters hold."""
    return Counter(map(_shown_content, service.rows("SELECT body, properties FROM dead_letters")))


def _shown_content(letter: Mapping[str, Any]) -> str:
    untaken = json.loads(letter["properties"]).get("untaken_body")
    if untaken is None:
        return str(letter["body"].hex())
    assert letter["body"] == b""
    return f"untaken, {untaken['bytes']} bytes, {untaken['digest']}"


async def drain(url: str, queue: str) -> list[bytes]:
    """Take everything out of a queue by the common client library; the bodies, in order."""
    install()  # some of them would end the library's connection
    bodies = []
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        declared = await channel.get_queue(queue, ensure=False)
        while (letter := await declared.get(no_ack=True, fail=False)) is not None:
            bodies.append(letter.body)
    return sorted(bodies)

"""What leaves the service, read from queues of the witness's own when all is over."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable

from tests.faults.amqp_client import Connection
from tests.faults.amqp_header import Header
from tests.faults.handlers import EVENTS
from tests.faults.records import Received
from tests.faults.workload import REPLIES

LETTERS_QUEUE, EVENTS_QUEUE = "witness.letters", "witness.events"
Call = Callable[[str, str, bytes | None], bytes]


def declare(call: Call, vhost: str, prefix: str) -> None:
    """Make them, and bind them to all dead letters and to what handlers send."""
    quorum = json.dumps({"durable": True, "arguments": {"x-queue-type": "quorum"}}).encode()
    call("PUT", f"/api/exchanges/{vhost}/{EVENTS}", b'{"type": "topic", "durable": true}')
    call("PUT", f"/api/queues/{vhost}/{REPLIES}", quorum)
    for queue, exchange in ((LETTERS_QUEUE, f"{prefix}.dlx"), (EVENTS_QUEUE, EVENTS)):
        call("PUT", f"/api/queues/{vhost}/{queue}", quorum)
        call("POST", f"/api/bindings/{vhost}/e/{exchange}/q/{queue}", b'{"routing_key": "#"}')


def read_all(url: str) -> list[Received]:
    """Empty them."""
    connection = Connection(url)
    try:
        letters = [letter(header, key, body) for header, key, body in connection.get_all(LETTERS_QUEUE)]
        events = [event(header, body) for header, _, body in connection.get_all(EVENTS_QUEUE)]
        replies = [reply(header, body) for header, _, body in connection.get_all(REPLIES)]
        return letters + events + replies
    finally:
        connection.close()


def letter(header: Header, routing_key: str, body: bytes) -> Received:
    return Received(
        kind="letter",
        at=time.time(),
        letter=header.text("bw-dead-letter-id"),
        queue=routing_key.partition(".")[0],
        name=header.name,
        id=header.id,
        correlation_id=header.texts.get("correlation_id", ""),
        reason=header.text("bw-reason"),
        body=hashlib.sha256(body).hexdigest(),
    )


def event(header: Header, body: bytes) -> Received:
    return Received(
        kind="event",
        at=time.time(),
        event=header.text("bw-event-id"),
        child_id=str(json.loads(body)["child_id"]),
        body=hashlib.sha256(body).hexdigest(),
    )


def reply(header: Header, body: bytes) -> Received:
    said = json.loads(body)
    return Received(
        kind="reply",
        at=time.time(),
        name=said["name"],
        id=said["id"],
        state=said["state"],
        correlation_id=header.texts.get("correlation_id", ""),
        body=hashlib.sha256(body).hexdigest(),
    )

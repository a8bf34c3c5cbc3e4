"""What is published in a run, all drawn from its seed: which message, when. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from tests.faults.amqp_client import Properties, long, short

MAIN, SIDE, RISKY = "main", "side", "risky"  # queues
SHARE_OF_SIDE = 0.05  # of what may be in either: a thin stream, which can be stopped for a while
MOST_TOGETHER = 30  # messages of a burst
SHARE_OF_BURSTS = 0.02

REPLIES = "witness.replies"  # a queue
SHARE_OF_ASKED = 0.05  # of transfers: the publisher wants to know how they end
TIMED = frozenset({"later", "hasty"})

Expected = Literal["", "task", "letter"]


@dataclass(frozen=True, slots=True)
class Planned:
    """One message, and the second of the run in which it is due."""

    due: float
    queue: str
    properties: Properties
    body: bytes
    expects: Expected = "task"
    starts_after: float | None = None  # seconds from when it is due
    starts_within: float | None = None


def nested(depth: int) -> bytes:
    """A table of tables, deeper than some clients can read."""
    value = b"t\x01"
    for _ in range(depth):
        value = b"F" + long(short(b"x") + value)
    return long(short(b"deep") + value)


# messages that break the contract, or try to; each with what becomes of it
Hostile = Callable[[str], tuple[Properties, bytes, Expected]]
HOSTILE: tuple[Hostile, ...] = (
    lambda id_: (Properties("plain", id_), b"{not json", "task"),
    lambda id_: (Properties("plain", id_), b'{"x": NaN}', "task"),
    lambda id_: (Properties("plain", id_), b"\xff\xfe{}", "task"),
    lambda id_: (Properties("plain", id_), b"[" * 5000, "task"),
    lambda id_: (Properties("plain", id_), b'{"amount": "much"}', "task"),
    lambda id_: (Properties("no_such_task", id_), b"{}", "task"),
    lambda id_: (Properties("plain", id_, content_type="text/plain"), b"{}", "task"),
    lambda id_: (Properties("plain", id_, timestamp=999_999_999_999_999), b"{}", "letter"),
    lambda id_: (Properties("plain", id_, raw_headers=nested(700)), b"{}", ""),
    lambda id_: (Properties("plain", id_, raw_headers=long(b"\x02\xff\xfet\x01")), b"{}", ""),
)

# in thousandths; crashers kill a whole daemon, so most of them do it to a child only
SHARES: dict[str, int] = {
    "transfer": 600,
    "plain": 130,
    "later": 10,
    "hasty": 10,
    "falters": 100,
    "fails": 50,
    "slow": 30,
    "in_process": 20,
    "in_thread": 20,
    "kills_child": 9,
    "kills_worker": 1,
    "hostile": 10,
    "duplicates": 10,
}


# tasks that succeed, whatever happens to whoever runs them
INNOCENT = frozenset({"transfer", "plain", "falters", "slow", "in_process", "in_thread", "receive"})


def workload(seed: int, *, messages: int, seconds: float) -> Iterator[Planned]:
    """Plan `messages` over `seconds`, in the order in which they are due."""
    random = Random(f"workload {seed}")
    pause = seconds / messages
    due, left_of_burst = 0.0, 0
    for number in range(messages):
        if left_of_burst:
            left_of_burst -= 1
        elif random.random() < SHARE_OF_BURSTS:
            left_of_burst = random.randint(1, MOST_TOGETHER)
        due = max(due, number * pause)
        yield from _planned(random, number, due)


def _planned(random: Random, number: int, due: float) -> Iterator[Planned]:
    kind = random.choices(list(SHARES), list(SHARES.values()))[0]
    id_ = f"{kind}-{number}"
    if kind == "hostile":
        properties, body, expects = random.choice(HOSTILE)(id_)
        yield Planned(due, MAIN, properties, body, expects)
        return
    name = "transfer" if kind == "duplicates" else kind
    if kind in TIMED:
        yield _timed(random, kind, Properties("plain", id_), due)
        return
    queue = RISKY if kind == "kills_worker" else MAIN
    if kind in {"transfer", "plain", "falters"} and random.random() < SHARE_OF_SIDE:
        queue = SIDE
    body = json.dumps({"amount": random.randint(1, 1000)}).encode()
    for _ in range(random.randint(2, 4) if kind == "duplicates" else 1):
        reply_to = REPLIES if kind == "transfer" and random.random() < SHARE_OF_ASKED else ""
        yield Planned(due, queue, Properties(name, id_, reply_to=reply_to), body)


def _timed(random: Random, kind: str, properties: Properties, due: float) -> Planned:
    """One that may not begin before a moment, or not after one."""
    body, seconds = b'{"amount": 1}', random.uniform(2.0, 15.0)
    if kind == "later":
        return Planned(due, MAIN, properties, body, starts_after=seconds)
    return Planned(due, MAIN, properties, body, starts_within=seconds)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()

"""What publishers send: tasks of every kind, repeats of them, and what is no task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

from broker_worker.errors import BrokerUnavailableError, PublishError
from broker_worker.message import DELIVER_AT, NOT_AFTER, Properties
from tests.faults.records import Publish, digest_of
from tests.simulation.broker import REPLIES, Answer, Broker, Channel, Held
from tests.simulation.store import UNSTORABLE
from tests.simulation.world import World

QUEUES = ("default", "mail")
CONFIRM_WAIT = 5.0  # seconds; then it is sent again

Payload = dict[str, object]


@dataclass(frozen=True)
class Planned:
    """One message, and when it is published first."""

    at: float
    queue: str
    properties: Properties
    body: bytes
    expects: str = "task"  # or letter, or nothing: without an id
    deliver_in: float | None = None
    not_after_in: float | None = None
    expires_in: float | None = None
    is_unroutable: bool = False
    kind: str = ""  # of what was made of it


def _task(random: Random, name: str, payload: Payload) -> tuple[str, Payload]:
    longest = random.choice((0.0, 0.0, 0.05, 0.5, 2.0, 10.0))
    return name, {"seconds": round(longest * random.random(), 3), **payload}


# How often each kind of task is drawn, and its payload.
KINDS: list[tuple[int, Callable[[Random], tuple[str, Payload]]]] = [
    (14, lambda random: _task(random, "ok", {})),
    (12, lambda random: _task(random, "flaky", {"failures": random.randint(1, 3)})),
    (6, lambda random: _task(random, "failing", {})),
    (3, lambda random: ("retrying", {"delay": random.random() * 3})),
    (3, lambda random: _task(random, "gives_up", {})),
    (4, lambda random: ("slow", {"seconds": random.choice((1.0, 3.5, 6.0))})),
    (1, lambda random: ("stubborn", {"seconds": random.choice((2.0, 4.0, 9.0))})),
    (2, lambda random: _task(random, "crasher", {"crashes": random.randint(1, 3)})),
    (24, lambda random: _task(random, "transfer", {"amount": random.randint(1, 99)})),
    (6, lambda random: _task(random, "transfer", {"amount": 7, "failures": random.randint(1, 2)})),
    (8, lambda random: _task(random, "sender", {"tasks": random.randint(0, 2), "events": 1})),
    (4, lambda random: _task(random, "sender", {"tasks": 2, "failures": 1})),
    (4, lambda random: _task(random, "saver", {"steps": random.randint(1, 3)})),
]


def draw_workload(random: Random, *, messages: int, seconds: float) -> list[Planned]:
    """Draw what is published within `seconds`."""
    planned: list[Planned] = []
    bursts = [random.random() * seconds for _ in range(random.randint(1, 3))]
    for number in range(messages):
        kinds = random.choices([kind for _, kind in KINDS], [weight for weight, _ in KINDS])
        name, payload = kinds[0](random)
        at = random.choice(bursts) if random.random() < 0.4 else random.random() * seconds
        planned += _vary(random, _planned(random, number, name, payload, at=at))
    return sorted(planned, key=lambda each: (each.at, each.properties.message_id or "", each.body))


def _planned(random: Random, number: int, name: str, payload: Payload, *, at: float) -> Planned:
    properties = Properties(type=name, message_id=f"t{number}", content_type="application/json")
    return Planned(
        at=at,
        queue=random.choice(QUEUES),
        properties=properties,
        body=json.dumps(payload).encode(),
    )


class _Variations:
    """What is made of one task that is not simply published."""

    def __init__(self, random: Random, one: Planned) -> None:
        self._random = random
        self._one = one
        self._later = one.at + random.random() * 20
        self._id = one.properties.message_id or ""

    def nothing(self) -> list[Planned]:
        return [self._one]

    def duplicate(self) -> list[Planned]:
        return [self._one, replace(self._one, at=self._later)]

    def triplicate(self) -> list[Planned]:
        return [self._one, self._one, replace(self._one, at=self._later)]

    def conflict(self) -> list[Planned]:
        return [self._one, replace(self._one, at=self._later, body=b'{"other": 1}')]

    def malformed(self) -> list[Planned]:
        return [replace(self._one, body=self._random.choice((b"{", b"[1, 2", b"\xff\xfe")))]

    def invalid(self) -> list[Planned]:
        return [replace(self._one, body=b'{"seconds": "soon"}')]

    def unknown(self) -> list[Planned]:
        return [replace(self._one, properties=replace(self._one.properties, type="unknown"))]

    def unidentified(self) -> list[Planned]:
        """Have an id that can't be one."""
        properties = Properties(message_id="x" * 250, type=f"odd-{self._id}")
        return [replace(self._one, properties=properties, expects="letter")]

    def without_id(self) -> list[Planned]:
        properties = replace(self._one.properties, message_id=None, type="ok")
        body = json.dumps({"seconds": 0.0, "mark": self._id}).encode()
        return [replace(self._one, properties=properties, body=body, expects="")]

    def unstorable(self) -> list[Planned]:
        return [_with_headers(replace(self._one, expects="letter"), {UNSTORABLE: "1"})]

    def deliver_at(self) -> list[Planned]:
        return [replace(self._one, deliver_in=self._random.random() * 25)]

    def not_after(self) -> list[Planned]:
        return [replace(self._one, not_after_in=self._random.random() * 12)]

    def expiring(self) -> list[Planned]:
        return [replace(self._one, expires_in=self._random.random() * 4)]

    def replied(self) -> list[Planned]:
        properties = replace(self._one.properties, reply_to=REPLIES, correlation_id=f"c-{self._id}")
        return [replace(self._one, properties=properties)]

    def misrouted(self) -> list[Planned]:
        return [replace(self._one, is_unroutable=True)]


VARIATIONS: list[tuple[int, Callable[[_Variations], list[Planned]]]] = [
    (73, _Variations.nothing),
    (6, _Variations.duplicate),
    (2, _Variations.triplicate),
    (2, _Variations.conflict),
    (2, _Variations.malformed),
    (1, _Variations.invalid),
    (1, _Variations.unknown),
    (1, _Variations.unidentified),
    (2, _Variations.without_id),
    (1, _Variations.unstorable),
    (2, _Variations.deliver_at),
    (2, _Variations.not_after),
    (1, _Variations.expiring),
    (2, _Variations.replied),
    (1, _Variations.misrouted),
]


def _vary(random: Random, one: Planned) -> list[Planned]:
    (vary,) = random.choices([each for _, each in VARIATIONS], [weight for weight, _ in VARIATIONS])
    kind = "" if vary is _Variations.nothing else vary.__name__
    return [replace(each, kind=kind) for each in vary(_Variations(random, one))]


def _with_headers(one: Planned, headers: Mapping[str, object]) -> Planned:
    properties = replace(one.properties, headers={**one.properties.headers, **headers})
    return replace(one, properties=properties)


class Publisher:
    """A program that publishes with confirms, and again where it does not know."""

    def __init__(self, world: World, broker: Broker, workload: list[Planned]) -> None:
        self._world = world
        self._broker = broker
        self._channel: Channel | None = None
        self._numbers = 0
        self.open = len(workload)
        for planned in workload:
            world.later(planned.at, self._publish, planned)

    def _publish(self, planned: Planned) -> None:
        if planned.kind:
            self._world.counts[planned.kind] += 1
        self._try(self._timed(planned))

    def _timed(self, planned: Planned) -> Planned:
        """Fix its times: what is sent again is the same message."""
        now = self._world.clock.now()
        if planned.deliver_in is not None:
            moment = now + timedelta(seconds=planned.deliver_in)
            planned = _with_headers(planned, {DELIVER_AT: moment.isoformat()})
        if planned.not_after_in is not None:
            moment = now + timedelta(seconds=planned.not_after_in)
            planned = _with_headers(planned, {NOT_AFTER: moment.isoformat()})
        if planned.expires_in is not None:
            milliseconds = str(int(planned.expires_in * 1000))
            planned = replace(planned, properties=replace(planned.properties, expiration=milliseconds))
        return planned

    def _try(self, planned: Planned) -> None:
        world = self._world
        self._numbers += 1
        number = self._numbers
        self._invoke(number, planned)
        try:
            channel = self._connected()
        except BrokerUnavailableError:
            world.tell(Publish(kind="fail", number=number))
            world.later(0.5 + world.random.random() * 2, self._try, planned)
            return
        done = Answer(partial(self._answered, number, planned))
        key = "nowhere" if planned.is_unroutable else planned.queue
        held = Held(planned.properties, planned.body, self._broker.topology.tasks_exchange, key)
        if planned.expires_in is not None:
            held.expires_at = world.loop.time() + planned.expires_in
        channel.publish(held, done, mandatory=True)
        world.later(CONFIRM_WAIT, done, PublishError("not confirmed in time"))

    def _answered(self, number: int, planned: Planned, error: PublishError | None) -> None:
        world = self._world
        world.tell(Publish(kind="info" if error else "ok", number=number))
        if error is None:
            self.open -= 1
        else:
            world.counts["published_again"] += 1
            world.later(world.random.random() * 2, self._try, planned)

    def _connected(self) -> Channel:
        if self._channel is None or not self._channel.is_usable:
            self._channel = self._broker.connect("publisher", None, self._world.outside).channel()
        return self._channel

    def _invoke(self, number: int, planned: Planned) -> None:
        properties: Any = planned.properties
        headers = properties.headers
        self._world.tell(
            Publish(
                kind="invoke",
                number=number,
                queue="nowhere" if planned.is_unroutable else planned.queue,
                name=properties.type or "",
                id=(properties.message_id or "") if planned.expects != "letter" or headers else "",
                digest=digest_of(properties.content_type, planned.body),
                body=hashlib.sha256(planned.body).hexdigest(),
                reply_to=properties.reply_to or "",
                deliver_at=_timestamp(headers.get(DELIVER_AT)),
                not_after=_timestamp(headers.get(NOT_AFTER)),
                expects=planned.expects,  # type: ignore[arg-type]  # one of three
            )
        )


def _timestamp(text: object) -> float | None:
    return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None

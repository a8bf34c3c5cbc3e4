"""RabbitMQ: quorum queues, channels, confirms, and the networks between it and its clients.

A frame takes its time, in each direction of a connection in order. What a fault does to a
connection it does to the frames that are on their way, too.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from broker_worker.amqp.topology import Topology
from broker_worker.dead_letter import LETTER_ID
from broker_worker.errors import BrokerUnavailableError, PublishError
from broker_worker.message import ATTEMPT, EPOCH, TASK_ID, Properties, media_type
from broker_worker.outgoing import EVENT_ID
from broker_worker.task import Poisoning
from tests.faults.records import Received, Sample, Wire
from tests.simulation.faults import Faults
from tests.simulation.world import PREFIX, World

if TYPE_CHECKING:
    from tests.simulation.process import SimulatedProcess

EVENTS = "events"  # an exchange that handlers name
REPLIES = "replies"  # a queue that publishers name

Done = Callable[[PublishError | None], None]
Frame = tuple[Callable[[], None], Wire | None]  # and how it was seen where it set out


class Answer:
    """Tells the end of a publish, the first one only."""

    def __init__(self, done: Done) -> None:
        self._done: Done | None = done

    def __call__(self, error: PublishError | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(error)


@dataclass(eq=False, slots=True)
class Held:
    """A message in the broker."""

    properties: Properties
    body: bytes = field(repr=False)
    exchange: str
    routing_key: str
    returns: int = 0  # to its queue, without an ack
    poisoning: Poisoning | None = None
    expires_at: float | None = None  # of the loop


class Queue:
    """A quorum queue."""

    def __init__(self, broker: Broker, name: str, *, limit: int | None = None, work: str = "") -> None:
        self.name = name
        self.work = work  # what publishers call it, if it is one of work
        self.ready: deque[Held] = deque()
        self.consumers: deque[Channel] = deque()
        self._broker = broker
        self._limit = limit

    @property
    def unacked(self) -> int:
        return sum(len(channel.unacked) for channel in self.consumers)

    def put(self, held: Held) -> None:
        self.ready.append(held)
        self.hand_out()

    def give_back(self, helds: list[Held]) -> None:
        """Take back what a channel left unsettled, or give it up at the limit."""
        for held in reversed(helds):
            held.returns += 1
            if self._limit is not None and held.returns > self._limit:
                self._broker.world.counts["delivery_limit"] += 1
                self._give_up(held, Poisoning.DELIVERY_LIMIT)
            else:
                self.ready.appendleft(held)
        self.hand_out()

    def hand_out(self) -> None:
        while self.ready and self._broker.is_up:
            channel = next((each for each in self.consumers if each.has_room), None)
            if channel is None:
                return
            self.consumers.remove(channel)  # the next message goes to another
            self.consumers.append(channel)
            held = self.ready.popleft()
            if held.expires_at is not None and held.expires_at <= self._broker.world.loop.time():
                self._broker.world.counts["expired_in_queue"] += 1
                self._give_up(held, Poisoning.EXPIRED)
            else:
                channel.deliver(held)

    def _give_up(self, held: Held, poisoning: Poisoning) -> None:
        topology = self._broker.topology
        key = topology.poison_key(self.work)
        again = Held(held.properties, held.body, topology.dead_letter_exchange, key, poisoning=poisoning)
        self._broker.route(again)


class Broker:
    """One node."""

    def __init__(self, world: World, faults: Faults, queues: tuple[str, ...], *, delivery_limit: int) -> None:
        self.world = world
        self.topology = Topology(PREFIX, queues)
        self.faults = faults
        self.is_up = True
        self.connections: list[Connection] = []
        self.queues: dict[str, Queue] = {}
        self.work_queues: list[Queue] = []
        self._waiting: list[Held] = []  # in delay queues
        self._rungs = {self.topology.delay(rung): rung.total_seconds() for rung in self.topology.rungs}
        self._numbers = 0
        for queue in queues:
            work, dead = self.topology.work_queue(queue), self.topology.dead_queue(queue)
            self.queues[work] = Queue(self, work, limit=delivery_limit, work=queue)
            self.work_queues.append(self.queues[work])
            self.queues[dead] = Queue(self, dead)
        self.queues[self.topology.unroutable] = Queue(self, self.topology.unroutable)

    @property
    def left(self) -> int:
        """How many messages are in it."""
        return len(self._waiting) + sum(len(each.ready) + each.unacked for each in self.queues.values())

    # --- connections -----------------------------------------------------------------

    def connect(self, process: str, life: SimulatedProcess | None, context: Context) -> Connection:
        """Let a client come.

        Raises:
            BrokerUnavailableError: it is down.
        """
        if not self.is_up:
            raise BrokerUnavailableError("connection refused")
        self._numbers += 1
        name = f"{process}#{self._numbers}"
        connection = Connection(self, name, process=process, life=life, context=context)
        self.connections.append(connection)
        self.world.tell(Wire(kind="opened", process=process, connection=connection.name))
        return connection

    def stop(self) -> None:
        """Go down; what was confirmed stays."""
        self.is_up = False
        for connection in list(self.connections):
            connection.end("the broker goes down")

    def start(self) -> None:
        self.is_up = True

    # --- messages --------------------------------------------------------------------

    def route(self, held: Held) -> bool:
        """Put a message where it belongs; `False` if that is nowhere."""
        topology, exchange, key = self.topology, held.exchange, held.routing_key
        if exchange in self._rungs:
            self._wait(held, self._rungs[exchange])
            return True
        if exchange == EVENTS:
            self._receive("event", held)
            return True
        if exchange == "":
            if key == REPLIES:
                self._receive("reply", held)
            return key == REPLIES
        if exchange == topology.dead_letter_exchange:
            if LETTER_ID in held.properties.headers:
                self._receive("letter", held)
            name = topology.dead_queue(key.partition(".")[0]) if key else ""
        else:
            name = topology.work_queue(key) if key.isidentifier() else ""
        self.queues.get(name, self.queues[topology.unroutable]).put(held)
        return True

    def _wait(self, held: Held, seconds: float) -> None:
        self._waiting.append(held)
        self.world.later(seconds, self._come_back, held)

    def _come_back(self, held: Held) -> None:
        if held not in self._waiting:
            return  # lost meanwhile
        if not self.is_up:
            self.world.later(1.0, self._come_back, held)
            return
        self._waiting.remove(held)
        dead = {"x-first-death-queue": held.exchange, "x-first-death-reason": "expired"}
        properties = replace(held.properties, headers={**held.properties.headers, **dead})
        self.route(Held(properties, held.body, self.topology.return_exchange, held.routing_key))

    def lose(self, is_such: Callable[[str, Held], bool]) -> int:
        """Lose messages that wait here; for a publisher's own nothing can make up, so choose well."""
        lost = 0
        for queue in self.work_queues:
            found = [held for held in queue.ready if is_such(queue.work, held)]
            for held in found:
                queue.ready.remove(held)
            lost += len(found)
        found = [held for held in self._waiting if is_such(held.routing_key, held)]
        for held in found:
            self._waiting.remove(held)
        return lost + len(found)

    def _receive(self, kind: Literal["letter", "event", "reply"], held: Held) -> None:
        headers = held.properties.headers
        answer = json.loads(held.body) if kind == "reply" else {}
        self.world.tell(
            Received(
                kind=kind,
                letter=_text(headers.get(LETTER_ID)),
                event=_text(headers.get(EVENT_ID)),
                child_id=json.loads(held.body) if kind == "event" else "",
                queue=held.routing_key.partition(".")[0] if kind == "letter" else "",
                name=_text(answer.get("name")) or held.properties.type or "",
                id=_text(answer.get("id") or headers.get(TASK_ID)),
                correlation_id=held.properties.correlation_id or "",
                reason=_text(answer.get("reason") or headers.get("bw-reason")),
                state=_text(answer.get("state")),
                body=hashlib.sha256(held.body).hexdigest(),
            )
        )

    def sample(self) -> None:
        """Record what is where."""
        for queue in self.queues.values():
            self.world.tell(
                Sample(
                    amqp_queue=queue.name,
                    ready=len(queue.ready),
                    unacked=queue.unacked,
                    consumers=len(queue.consumers),
                )
            )
        for rung in self._rungs:
            waiting = sum(held.exchange == rung for held in self._waiting)
            self.world.tell(Sample(amqp_queue=rung, ready=waiting, unacked=0))


class Connection:
    """One client's, seen from both ends."""

    def __init__(
        self, broker: Broker, name: str, *, process: str, life: SimulatedProcess | None, context: Context
    ) -> None:
        self.broker = broker
        self.world = broker.world
        self.name = name
        self.process = process
        self.life = life
        self.is_open = True  # to the broker
        self.is_usable = True  # to the client
        self.is_silent = False  # no frame passes, and nobody knows
        self.on_lost: Callable[[str], None] = lambda _: None
        self.channels: list[Channel] = []
        self._context = context
        self._up: deque[Frame] = deque()
        self._down: deque[Frame] = deque()

    def channel(self) -> Channel:
        channel = Channel(self, len(self.channels) + 1)
        self.channels.append(channel)
        return channel

    # --- frames ----------------------------------------------------------------------

    def to_broker(self, frame: Callable[[], None], seen: Wire | None = None) -> None:
        self._up.append((frame, seen))
        self.world.later(self.world.latency(), self._arrive)

    def to_client(self, frame: Callable[[], None], seen: Wire | None = None) -> None:
        self._down.append((frame, seen))
        self.world.loop.call_later(self.world.latency(), self._reach, context=self._context)

    def _arrive(self) -> None:
        frame, seen = self._up.popleft()
        if self.is_open and not self.is_silent:
            frame()
        elif seen is not None:
            seen.is_passed = False

    def _reach(self) -> None:
        frame, seen = self._down.popleft()
        if self.is_usable and not self.is_silent:
            frame()
        elif seen is not None:
            seen.is_passed = False

    # --- ends ------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """End it at once, and tell both ends."""
        self.end_here()
        self.world.loop.call_later(self.world.latency(), self.lose, reason, context=self._context)

    def end_here(self) -> None:
        """Notice its end in the broker: what is unsettled goes back."""
        if not self.is_open:
            return
        self.is_open = False
        self.broker.connections.remove(self)
        self.world.tell(Wire(kind="lost", process=self.process, connection=self.name))
        for channel in self.channels:
            channel.give_back()

    def lose(self, reason: str) -> None:
        """Notice its end in the client."""
        if self.is_usable:
            self.is_usable = False
            for channel in self.channels:
                channel.lose(reason)
            self.on_lost(reason)

    def close(self) -> None:
        """Close it from the client: what was sent before arrives before."""
        self.is_usable = False
        for channel in self.channels:
            channel.lose("closed")
        self.to_broker(self.end_here)

    def fall_silent(self) -> float:
        """Let no frame pass any more; seconds until both ends have found out by their own heartbeats."""
        self.is_silent = True
        world = self.world
        here, there = 20 + world.random.random() * 12, 22 + world.random.random() * 12
        world.later(here, self.end_here)
        world.loop.call_later(there, self.lose, "no heartbeat", context=self._context)
        return max(here, there)


class Channel:
    """One channel, seen from both ends."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.world = connection.world
        self.number = number
        self.is_open = True  # to the broker
        self.is_usable = True  # to the client
        self.unacked: dict[int, Held] = {}
        self.queue: Queue | None = None
        self.on_delivery: Callable[[Channel, int, Held], None] = lambda *_: None
        self.on_lost: Callable[[str], None] = lambda _: None
        self._prefetch = 0
        self._is_consuming = False
        self._tags = 0
        self._publishes = 0
        self._unconfirmed: dict[int, Done] = {}

    # --- consuming, at the broker ------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return self._is_consuming and len(self.unacked) < self._prefetch

    def deliver(self, held: Held) -> None:
        self._tags += 1
        tag = self._tags
        self.unacked[tag] = held
        assert self.queue is not None
        seen = self._tell("deliver", held, tag=tag, redelivered=held.returns > 0, amqp_queue=self.queue.name)
        self.connection.to_client(lambda: self._delivered(tag, held), seen)

    def give_back(self) -> None:
        """End it here; what is unsettled goes back to its queue."""
        if not self.is_open:
            return
        self.is_open = self._is_consuming = False
        unacked, self.unacked = self.unacked, {}
        if self.queue is not None:
            self.queue.consumers.remove(self)
            self.queue.give_back(list(unacked.values()))

    def close_here(self, reason: str) -> None:
        """Close it for a reason of the broker's."""
        if self.is_open:
            self._tell("channel_lost")
            self.give_back()
            self.connection.to_client(lambda: self.lose(reason))

    def cancel_here(self) -> None:
        """Cancel its consumer for a reason of the broker's; what it has it may still settle."""
        if self._is_consuming and self.queue is not None:
            self._is_consuming = False
            self._tell("cancelled", amqp_queue=self.queue.name)
            self.connection.to_client(lambda: self.on_lost("the broker cancelled the consumer"))

    def _acked(self, tag: int, seen: Wire | None) -> None:
        if not self.is_open:
            if seen is not None:
                seen.is_passed = False
            return
        if tag not in self.unacked:
            self.world.log("broker", f"unknown delivery tag {tag} on {self.connection.name}")
            self.close_here(f"PRECONDITION_FAILED - unknown delivery tag {tag}")
            return
        del self.unacked[tag]
        self.world.progressed()
        if self.queue is not None:
            self.queue.hand_out()

    def _returned(self, tag: int) -> None:
        if self.is_open and tag in self.unacked and self.queue is not None:
            self.queue.give_back([self.unacked.pop(tag)])

    def _consume(self, queue: Queue, prefetch: int) -> None:
        if self.is_open:
            self.queue, self._prefetch, self._is_consuming = queue, prefetch, True
            queue.consumers.append(self)
            queue.hand_out()

    def _stop(self) -> None:
        self._is_consuming = False

    # --- consuming, at the client ------------------------------------------------------

    def consume(self, amqp_queue: str, *, prefetch: int) -> None:
        queue = self.connection.broker.queues[amqp_queue]
        self.connection.to_broker(lambda: self._consume(queue, prefetch))

    def stop(self) -> None:
        """Take no more."""
        if self.is_usable:
            self.connection.to_broker(self._stop)

    def ack(self, tag: int) -> None:
        """Send an ack; on a channel that is gone there is no way to."""
        if self.is_usable:
            seen = self._tell("ack", tag=tag)
            self.connection.to_broker(lambda: self._acked(tag, seen), seen)

    def close(self) -> None:
        """Close it, with what it holds."""
        if self.is_usable:
            self.is_usable = False
            self._tell("channel_lost")
            self.connection.to_broker(self.give_back)

    def reject(self, tag: int) -> None:
        """Give a delivery back to its queue."""
        if self.is_usable:
            seen = self._tell("reject", tag=tag, requeue=True)
            self.connection.to_broker(lambda: self._returned(tag), seen)

    def lose(self, reason: str) -> None:
        """Notice its end."""
        if self.is_usable:
            self.is_usable = False
            unconfirmed, self._unconfirmed = self._unconfirmed, {}
            for done in unconfirmed.values():
                done(PublishError(f"the channel was lost: {reason}"))
            self.on_lost(reason)

    def _delivered(self, tag: int, held: Held) -> None:
        if self.is_usable:
            self.on_delivery(self, tag, held)

    # --- publishing ------------------------------------------------------------------

    def publish(self, held: Held, done: Done, *, mandatory: bool) -> int:
        """Publish, and hear of the end: nothing, or why not."""
        self._publishes += 1
        tag = self._publishes
        self._unconfirmed[tag] = done
        seen = self._tell("publish", held, tag=tag, mandatory=mandatory)
        self.connection.to_broker(partial(self._published, tag, held, mandatory), seen)
        return tag

    def forget(self, tag: int) -> None:
        """Wait no longer for a confirm."""
        self._unconfirmed.pop(tag, None)

    def _published(self, tag: int, held: Held, mandatory: bool) -> None:
        faults = self.connection.broker.faults
        is_returned = False
        if self.connection.life is not None:
            if faults.strikes("publish_refused"):
                return self._answer(tag, "refused", PublishError("refused by the broker"))
            if faults.strikes("publish_twice"):
                self.connection.broker.route(
                    Held(held.properties, held.body, held.exchange, held.routing_key)
                )
            is_returned = mandatory and faults.strikes("publish_returned")
        if is_returned or not (self.connection.broker.route(held) or not mandatory):
            self._tell("returned", held)
            return self._answer(tag, "confirm", PublishError("returned by the broker"))
        if faults.strikes("confirm_lost"):
            self._tell("confirm", tag=tag, is_passed=False)
            return None
        return self._answer(tag, "confirm", None)

    def _answer(self, tag: int, kind: str, error: PublishError | None) -> None:
        seen = self._tell(kind, tag=tag)
        self.connection.to_client(lambda: self._answered(tag, error), seen)

    def _answered(self, tag: int, error: PublishError | None) -> None:
        if (done := self._unconfirmed.pop(tag, None)) is not None:
            done(error)

    # --- what the witness sees -----------------------------------------------------------

    def _tell(self, kind: str, held: Held | None = None, **facts: object) -> Wire | None:
        if self.connection.life is None:
            return None  # the publishers have a log of their own
        if not (self.is_open and self.connection.is_open):
            return None  # the witness stands at the broker, who drops what comes for what is closed
        fields = (_fields(held) if held is not None else {}) | facts
        seen = Wire(
            kind=kind,  # type: ignore[arg-type]  # one of those
            connection=self.connection.name,
            process=self.connection.process,
            channel=self.number,
            **fields,  # type: ignore[arg-type]  # its fields
        )
        self.world.tell(seen)
        return seen


def _fields(held: Held) -> dict[str, object]:
    properties, headers = held.properties, held.properties.headers
    media = media_type(properties.content_type)
    return {
        "exchange": held.exchange,
        "routing_key": held.routing_key,
        "name": properties.type or _text(headers.get("task-type")),
        "id": _text(headers.get(TASK_ID) or properties.message_id or headers.get("task-id")),
        "message_id": properties.message_id or "",
        "correlation_id": properties.correlation_id or "",
        "epoch": _number(headers.get(EPOCH)),
        "attempt": _number(headers.get(ATTEMPT)),
        "digest": hashlib.sha256(media.encode() + b"\0" + held.body).hexdigest(),
        "body": hashlib.sha256(held.body).hexdigest(),
        "letter": _text(headers.get(LETTER_ID)),
        "event": _text(headers.get(EVENT_ID)),
        "reason": _text(headers.get("bw-reason")),
        "headers": list(headers),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if type(value) is int else 0

"""The wire log replayed: what each ack settled, and what became of each publish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.faults.records import TaskKey, Wire

Place = tuple[str, int]  # connection and channel


@dataclass(slots=True)
class Settled:
    """A delivery that the broker may forget from `act` on, or was asked to take back."""

    act: Wire
    delivery: Wire | None  # none: the tag names nothing that is unsettled on that channel
    task: TaskKey
    left: int = 0  # messages of the same task that the broker still keeps after `act`

    @property
    def is_forgotten(self) -> bool:
        """Whether the broker need not keep it: an ack, or a refusal that does not put it back."""
        return self.act.kind == "ack" or not self.act.requeue


@dataclass(slots=True)
class Sent:
    """A publish of a daemon's, and what it heard of it."""

    wire: Wire
    confirmed: Wire | None = None
    is_returned: bool = False
    is_refused: bool = False

    @property
    def is_safe(self) -> bool:
        """Whether the daemon may rely on it."""
        return self.confirmed is not None and not self.is_returned


@dataclass(slots=True)
class WireFacts:
    """What one pass over the wire log finds."""

    settled: list[Settled] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    deliveries: dict[TaskKey, list[Wire]] = field(default_factory=dict)
    unsettled: int = 0  # when the log ends


class Names:
    """Whom a delivery is of: its queue is named by where it was consumed, its task perhaps by a default."""

    def __init__(self, prefix: str, known: Iterable[TaskKey]) -> None:
        self._work = f"{prefix}.q."
        self._dead = f"{prefix}.dead."
        self._by_place: dict[tuple[str, str], TaskKey | None] = {}
        for task in known:
            place = (task.queue, task.id)
            is_shared = place in self._by_place and self._by_place[place] != task
            self._by_place[place] = None if is_shared else task

    def is_work(self, amqp_queue: str) -> bool:
        return amqp_queue.startswith(self._work)

    def task(self, delivery: Wire) -> TaskKey:
        if delivery.amqp_queue.startswith(self._work):
            queue = delivery.amqp_queue.removeprefix(self._work)
        elif delivery.amqp_queue.startswith(self._dead):
            queue = delivery.amqp_queue.removeprefix(self._dead)
        else:  # what could not be routed has its queue as key
            queue = delivery.routing_key
        if not delivery.name and (found := self._by_place.get((queue, delivery.id))) is not None:
            return found
        return TaskKey(queue, delivery.name, delivery.id)


def replay(log: Sequence[Wire], names: Names) -> WireFacts:
    """Follow every channel through the log."""
    wires = _Wires(names)
    for wire in sorted(log, key=lambda each: (each.at, each.order)):
        wires.look(wire)
    wires.facts.unsettled = sum(len(channel) for channel in wires.open.values())
    return wires.facts


class _Wires:
    def __init__(self, names: Names) -> None:
        self.facts = WireFacts()
        self.open: dict[Place, dict[int, tuple[Wire, TaskKey]]] = {}  # deliveries that are not settled
        self._unconfirmed: dict[Place, dict[int, Sent]] = {}  # in the order of their tags
        self._held: Counter[TaskKey] = Counter()  # unsettled deliveries
        self._back: Counter[TaskKey] = Counter()  # given back to the broker, and not delivered again yet
        self._gone: set[Place] = set()  # lost, and not used again
        self._names = names

    def look(self, wire: Wire) -> None:
        match wire.kind:
            case "deliver":
                self._deliver(wire)
            case "ack" | "nack" | "reject":
                self._settle(wire)
            case "publish":
                self._publish(wire)
            case "confirm" | "refused":
                self._answer(wire)
            case "returned":
                self._return(wire)
            case "lost" | "channel_lost":
                self._lose(wire)
            case _:
                pass

    def _deliver(self, wire: Wire) -> None:
        task = self._names.task(wire)
        self.facts.deliveries.setdefault(task, []).append(wire)
        is_again = wire.redelivered or not self._names.is_work(wire.amqp_queue)
        if is_again and self._back[task]:
            self._back[task] -= 1
        self._gone -= {(wire.connection, wire.channel), (wire.connection, 0)}
        if wire.is_passed:
            self.open.setdefault((wire.connection, wire.channel), {})[wire.tag] = (wire, task)
            self._held[task] += 1
        else:
            self._back[task] += 1  # comes back when its connection ends

    def _settle(self, act: Wire) -> None:
        if {(act.connection, act.channel), (act.connection, 0)} & self._gone:
            return  # it was on its way when the channel was closed, and the broker drops it
        channel = self.open.get((act.connection, act.channel), {})
        tags = [tag for tag in channel if tag <= act.tag or act.tag == 0] if act.multiple else [act.tag]
        found = [channel.pop(tag) for tag in tags if tag in channel]
        if not found:
            self.facts.settled.append(Settled(act, None, TaskKey("", "", "")))
        for _, task in found:
            self._held[task] -= 1
            if act.requeue and act.kind != "ack":
                self._back[task] += 1
        for delivery, task in found:
            left = self._held[task] + self._back[task]
            self.facts.settled.append(Settled(act, delivery, task, left))

    def _publish(self, wire: Wire) -> None:
        sent = Sent(wire)
        self.facts.sent.append(sent)
        self._unconfirmed.setdefault((wire.connection, wire.channel), {})[wire.tag] = sent

    def _answer(self, wire: Wire) -> None:
        channel = self._unconfirmed.get((wire.connection, wire.channel), {})
        for sent in _taken(channel, wire):
            if wire.kind == "refused":
                sent.is_refused = True
            elif wire.is_passed:
                sent.confirmed = wire

    def _return(self, wire: Wire) -> None:
        channel = self._unconfirmed.get((wire.connection, wire.channel), {})
        for sent in channel.values():
            if sent.wire.message_id == wire.message_id:
                sent.is_returned = True
                return

    def _lose(self, wire: Wire) -> None:
        self._gone.add((wire.connection, 0 if wire.kind == "lost" else wire.channel))
        for place in [place for place in self.open if _is_at(place, wire)]:
            for _, task in self.open.pop(place).values():
                self._held[task] -= 1
                self._back[task] += 1
        for place in [place for place in self._unconfirmed if _is_at(place, wire)]:
            del self._unconfirmed[place]


def _taken(channel: dict[int, Sent], wire: Wire) -> list[Sent]:
    if not wire.multiple:
        return [channel.pop(wire.tag)] if wire.tag in channel else []
    tags = []
    for tag in channel:  # ascending: it ends at the first that is not meant
        if tag > wire.tag > 0:
            break
        tags.append(tag)
    return [channel.pop(tag) for tag in tags]


def _is_at(place: Place, wire: Wire) -> bool:
    return (place[0] == wire.connection and wire.kind == "lost") or place == (wire.connection, wire.channel)

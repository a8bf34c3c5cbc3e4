"""The broker forgets nothing that we still need, and we nothing that the broker has not confirmed: I4, I5."""

from __future__ import annotations

from collections import Counter, defaultdict

from tests.faults.facts import NEVER, TERMINAL, WAITING, Facts, Moment
from tests.faults.records import OutboxChange, TaskChange, Wire
from tests.faults.verdict import Finding
from tests.faults.wires import Sent, Settled

REPLY_TRIES = 20  # after which a reply is given up


def no_ack_before_the_commit(facts: Facts, found: Finding) -> None:
    """I4. When the broker is told to forget a delivery, what stands for it is committed.

    That is: the task has ended; or it waits, and the row of its current copy was committed in the outbox;
    or it runs, and its row has the body, or the broker still keeps another message of it. For a message
    without an id stands the confirm of its stamped copy; for a dead letter, and for what is no task, the
    letter's row. An ack that names nothing unsettled on its channel is a violation by itself.
    """
    stamped = _Stamped(facts)
    for settled in facts.wire.settled:
        if not settled.is_forgotten:
            continue
        found.checked += 1
        if settled.delivery is None:
            act = settled.act
            place = f"{act.connection} channel {act.channel}"
            found.violate(f"{act.kind} of tag {act.tag}, which is not unsettled on {place}", at=act.at)
        elif (missing := _missing(facts, settled, settled.delivery, stamped)) is not None:
            found.violate(f"{_verb(settled.act)} {missing}", settled.task, settled.act.at)


def nothing_is_forgotten_before_its_confirm(facts: Facts, found: Finding) -> None:
    """I5. A row of the outbox is deleted only after the broker confirmed its message and did not return it.

    Or when there is nothing to send any more: the task has moved on from the copy's epoch, or is gone; or a
    reply that could not be sent twenty times. What is ours to keep is published so that it comes back where
    no queue takes it.
    """
    safe = _Safe(facts)
    gone: set[tuple[object, int]] = {
        (change.key, change.xid) for change in facts.recording.history if not change.new_state
    }
    gone |= {(each.letter, each.xid) for each in facts.recording.history_letters if each.op == "delete"}
    deleted = [each for each in facts.recording.history_outbox if each.op == "delete"]
    for change in sorted(deleted, key=facts.moment):
        found.checked += 1
        moment = facts.moment(change)
        if safe.was_confirmed(change, moment):
            continue
        if (change.key, change.xid) in gone or (change.letter, change.xid) in gone:
            continue
        if change.kind == "copy" and _has_moved_on(facts, change, moment):
            continue
        if change.kind == "reply" and change.failures >= REPLY_TRIES:
            continue
        text = f"outbox row {change.number} ({change.kind}, epoch {change.epoch}) deleted without a confirm"
        found.violate(text, facts.tasks.get(change.key), moment[0])
    for sent in facts.wire.sent:
        wire = sent.wire
        if not wire.mandatory and not wire.event:
            found.violate(f"published to {wire.exchange!r} without mandatory", at=wire.at)


def _verb(act: Wire) -> str:
    return {"ack": "acked", "nack": "dropped (nack)", "reject": "dropped (reject)"}[act.kind]


def _missing(facts: Facts, settled: Settled, delivery: Wire, stamped: _Stamped) -> str | None:
    """What should stand for a delivery and is not committed; nothing where something does."""
    moment = facts.moment(settled.act)
    if delivery.letter:
        is_kept = facts.letter_moments.get(delivery.letter, NEVER) <= moment
        return None if is_kept or _has_letter(facts, settled) else "and its dead letter is not kept"
    if not delivery.id:
        is_safe = stamped.take(delivery, moment) or _has_letter(facts, settled)
        return None if is_safe else "without an id, and no copy of it was confirmed"
    life = facts.life_by_task.get(settled.task)
    change = life.at(moment) if life is not None else None
    if change is None or not change.new_state:
        return None if _has_letter(facts, settled) else "and nothing was committed about it"
    if change.digest and delivery.digest and change.digest != delivery.digest:
        has_letter = _has_letter(facts, settled)
        return None if has_letter else "and another message has its identity, and no dead letter has this one"
    return _missing_of_row(facts, settled, delivery, change)


def _missing_of_row(facts: Facts, settled: Settled, delivery: Wire, change: TaskChange) -> str | None:
    moment, epoch = facts.moment(settled.act), change.new_epoch
    state = f"and the row was {change.new_state} at epoch {epoch}"
    if change.new_state in TERMINAL:
        return None
    if change.new_state in WAITING:
        if delivery.epoch >= epoch:
            return None if settled.left else f"{state}, for which this was the current copy"
        is_owed = facts.copies_owed.get((change.key, epoch), NEVER) <= moment
        return None if is_owed else f"{state}, and no copy is owed"
    is_held = change.new_body or settled.left > 0
    return None if is_held else f"{state}, without a body and without another message"


def _has_letter(facts: Facts, settled: Settled) -> bool:
    """Whether a dead letter with this body was committed; of an oversized one only the name may be kept."""
    moment, task = facts.moment(settled.act), settled.task
    if settled.delivery is not None and facts.letter_bodies.get(settled.delivery.body, NEVER) <= moment:
        return True
    return bool(task.id) and facts.letter_names.get((task.queue, task.id), NEVER) <= moment


def _has_moved_on(facts: Facts, deleted: OutboxChange, moment: Moment) -> bool:
    life = facts.lives.get(deleted.key)
    change = life.at(moment) if life is not None else None
    return change is not None and (change.new_epoch != deleted.epoch or change.new_state not in WAITING)


class _Stamped:
    """Confirmed copies of messages that came without an id: each stands for one ack."""

    def __init__(self, facts: Facts) -> None:
        self._confirmed: defaultdict[str, list[Moment]] = defaultdict(list)
        for sent in facts.wire.sent:
            is_first = bool(sent.wire.id) and not sent.wire.letter and sent.wire.epoch == 0
            if is_first and sent.is_safe and sent.confirmed is not None:
                self._confirmed[sent.wire.digest].append(facts.moment(sent.confirmed))
        self._taken: Counter[str] = Counter()

    def take(self, delivery: Wire, moment: Moment) -> bool:
        self._taken[delivery.digest] += 1
        until = sum(each <= moment for each in self._confirmed[delivery.digest])
        return until >= self._taken[delivery.digest]


class _Safe:
    """What the broker confirmed, by what a row of the outbox says of it."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._letters = self._earliest("letter")
        self._events = self._earliest("event")
        self._by_key: defaultdict[str, list[Moment]] = defaultdict(list)
        self._taken: Counter[str] = Counter()
        for sent in facts.wire.sent:
            if sent.is_safe and sent.confirmed is not None:
                self._by_key[sent.wire.routing_key].append(facts.moment(sent.confirmed))
        for moments in self._by_key.values():
            moments.sort()

    def was_confirmed(self, deleted: OutboxChange, moment: Moment) -> bool:
        if deleted.kind == "dead_letter":
            return self._letters.get(deleted.letter, NEVER) <= moment
        if deleted.kind == "event":
            return self._events.get(deleted.event, NEVER) <= moment
        task = self._facts.tasks.get(deleted.key)
        if deleted.kind == "copy" and task is not None:
            sent = self._facts.copies_sent.get((task.queue, task.id, deleted.epoch), [])
            return any(_is_safe_by(self._facts, each, moment) for each in sent)
        return self._is_among(deleted.routing_key, moment)

    def _is_among(self, routing_key: str, moment: Moment) -> bool:
        """Replies, and replayed strangers, have no name of their own on the wire: they are counted."""
        index = self._taken[routing_key]
        self._taken[routing_key] += 1
        moments = self._by_key[routing_key]
        return index < len(moments) and moments[index] <= moment

    def _earliest(self, name: str) -> dict[str, Moment]:
        earliest: dict[str, Moment] = {}
        for sent in self._facts.wire.sent:
            value = getattr(sent.wire, name)
            if value and sent.is_safe and sent.confirmed is not None:
                moment = self._facts.moment(sent.confirmed)
                earliest[value] = min(moment, earliest.get(value, NEVER))
        return earliest


def _is_safe_by(facts: Facts, sent: Sent, moment: Moment) -> bool:
    return sent.is_safe and sent.confirmed is not None and facts.moment(sent.confirmed) <= moment

"""All that a recording knows of one task, in one order, for people."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.facts import Facts, Moment
from tests.faults.records import (
    AttemptChange,
    Child,
    Effect,
    Fault,
    LetterChange,
    OutboxChange,
    Publish,
    Received,
    Record,
    Run,
    TaskChange,
    TaskKey,
    Wire,
)

AROUND = 60.0  # seconds before and after a task within which faults are shown
LONGEST = 80  # lines

Line = tuple[Moment, str]


def timeline(facts: Facts, task: TaskKey) -> list[str]:
    """The events of `task`, one a line, beginning with seconds since the run began."""
    lines = sorted(_lines(facts, task))
    if lines:
        begin, end = lines[0][0][0] - AROUND, lines[-1][0][0] + AROUND
        faults = [each for each in facts.recording.faults if begin <= each.at <= end]
        lines = sorted([*lines, *((facts.moment(each), describe(each)) for each in faults)])
    zero = facts.about.began_at
    shown = [f"{at - zero:12.6f}  {text}" for (at, _), text in lines]
    if len(shown) > LONGEST:
        half = LONGEST // 2
        shown = [*shown[:half], f"{'...':>12}  {len(shown) - LONGEST} more", *shown[-half:]]
    return shown


def _lines(facts: Facts, task: TaskKey) -> Iterator[Line]:
    for record in _records(facts, task):
        yield facts.moment(record), describe(record)
    for settled in facts.wire.settled:
        if settled.task == task and settled.delivery is not None:
            delivery = settled.delivery
            yield facts.moment(settled.act), f"wire     {_acted(settled.act)} of tag {delivery.tag}"
    for sent in facts.wire.sent:
        if (sent.wire.routing_key.partition(".")[0], sent.wire.id) == (task.queue, task.id):
            yield facts.moment(sent.wire), describe(sent.wire)
            if sent.confirmed is not None:
                returned = "returned, then " if sent.is_returned else ""
                yield facts.moment(sent.confirmed), f"wire     {returned}confirmed: tag {sent.wire.tag}"


def _records(facts: Facts, task: TaskKey) -> Iterator[Record]:
    for publishing in facts.published.get(task, []):
        yield publishing.invoke
        answer = publishing.kind
        if publishing.answered_at < float("inf"):
            yield Publish(at=publishing.answered_at, kind=answer, number=publishing.invoke.number)  # type: ignore[arg-type]  # a kind
    yield from facts.wire.deliveries.get(task, [])
    keys = {key for key, name in facts.tasks.items() if name == task}
    recording = facts.recording
    for key in keys:
        yield from facts.raw_lives.get(key, [])
    rows: list[OutboxChange | AttemptChange | LetterChange] = [
        *recording.history_outbox,
        *recording.history_attempts,
        *recording.history_letters,
    ]
    yield from (each for each in rows if each.key in keys)
    yield from facts.effects.get(task, [])
    yield from facts.begun.get(task, [])
    yield from facts.ended.get(task, [])
    yield from facts.children.get(task, [])
    yield from (each for each in recording.received if (each.name, each.id) == (task.name, task.id))


def describe(record: Record) -> str:
    """One record in words."""
    match record:
        case Publish():
            return f"publish  {record.kind} number {record.number}"
        case Wire(kind="deliver"):
            again = " again" if record.redelivered else ""
            swallowed = "" if record.is_passed else ", swallowed"
            place = f"{record.connection} channel {record.channel} tag {record.tag}"
            what = f"delivered{again} from {record.amqp_queue}, epoch {record.epoch}{swallowed}"
            return f"wire     {what}, on {place}"
        case Wire(kind="publish"):
            place = f"{record.exchange or 'default'}/{record.routing_key}"
            kind = f"letter {record.reason}" if record.letter else f"epoch {record.epoch}"
            return f"wire     published to {place}, tag {record.tag}, {kind}"
        case TaskChange():
            old = f"{record.old_state or 'new'} {record.old_attempt}@{record.old_epoch}"
            new = f"{record.new_state or 'gone'} {record.new_attempt}@{record.new_epoch}"
            body = ", body" if record.new_body else ""
            why = f", {record.reason}" if record.reason else ""
            worker = f", worker {record.new_worker[:8]}"
            return f"row      {old} -> {new}{worker}{body}{why} (transaction {record.xid})"
        case _:
            return _describe_other(record)


def _describe_other(record: Record) -> str:
    match record:
        case OutboxChange():
            return f"outbox   {record.op} {record.number}: {record.kind}, epoch {record.epoch} ({record.xid})"
        case AttemptChange():
            return f"attempt  {record.attempt}@{record.epoch} {record.outcome}, worker {record.worker[:8]}"
        case LetterChange():
            return f"letter   {record.op} {record.letter}: {record.reason} {record.resolution}"
        case Received():
            return f"witness  received {record.kind} {record.letter or record.event} {record.state}"
        case Fault():
            return f"FAULT    {record.kind} of {record.target or 'all'} {record.phase}"
        case _:
            return _describe_handler(record)


def _describe_handler(record: Record) -> str:
    match record:
        case Effect():
            return f"effect   of attempt {record.attempt} (transaction {record.xid})"
        case Run():
            return (
                f"handler  {record.kind}, attempt {record.attempt} in {record.process or record.worker[:8]}"
            )
        case Child():
            return f"handler  sent {record.kind} {record.child_id}, attempt {record.attempt}"
        case _:
            return repr(record)


def _acted(act: Wire) -> str:
    many = f" (up to {act.tag})" if act.multiple else ""
    again = ", requeued" if act.requeue else ""
    swallowed = "" if act.is_passed else ", swallowed"
    return f"{act.kind}{many}{again}{swallowed} on {act.connection} channel {act.channel}"

# ruff: noqa: ANN401 - facts are the fields of records, whatever their types
"""Recordings made by hand: what a fleet that does everything right leaves behind, told step by step.

A test tells a story, takes one step of it back or adds one, and asks the checker.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, TypeVar

from tests.faults.records import (
    About,
    AttemptChange,
    Child,
    Effect,
    Fault,
    FinalLetter,
    FinalTask,
    HandlerFacts,
    LetterChange,
    LogLine,
    OutboxChange,
    Process,
    Publish,
    Received,
    Record,
    Recording,
    Run,
    Sample,
    TaskChange,
    TaskKey,
    Wire,
    WorkerChange,
    digest_of,
)

TICK = 0.01  # seconds from one record to the next
ALICE, BOB = "alice", "bob"  # workers
BEGAN = 1000.0
R = TypeVar("R", bound=Record)


def body_of(id_: str) -> bytes:
    return f'"{id_}"'.encode()


def digest(id_: str) -> str:
    return digest_of(None, body_of(id_))


def sha(id_: str) -> str:
    return hashlib.sha256(body_of(id_)).hexdigest()


class Story:
    """One clock, one order, one queue."""

    def __init__(self) -> None:
        handlers = {"transfer": HandlerFacts(is_transactional=True), "plain": HandlerFacts()}
        self.recording = Recording(about=About(handlers=handlers, has_one_order=True, began_at=BEGAN))
        self.now = BEGAN
        self.rows: dict[str, TaskChange] = {}  # the last change of each
        self._count = 0
        self._numbers = 0
        self._letters: dict[str, FinalLetter] = {}
        for worker in (ALICE, BOB):
            self.tell(WorkerChange(op="insert", worker=worker, xid=self.xid()))
            self.tell(Process(kind="began", process=worker, worker=worker))
            self.tell(Wire(kind="opened", connection=worker))

    def tell(self, record: R) -> R:
        """Add a record, a moment after the last one."""
        self._count += 1
        self.now += TICK
        record.at, record.order = self.now, self._count
        self.recording.add(record)
        return record

    def xid(self) -> int:
        self._numbers += 1
        return self._numbers

    # --- the broker ----------------------------------------------------------------------

    def publish(self, id_: str, *, name: str = "plain", kind: str = "ok", **facts: Any) -> Publish:
        """Publish a message; answer with its invoke."""
        number = self.xid()
        invoke = self.tell(
            Publish(
                kind="invoke",
                number=number,
                queue="default",
                name=name,
                id=id_,
                **{"digest": digest(id_), "body": sha(id_), **facts},
            )
        )
        self.tell(Publish(kind=kind, number=number))  # type: ignore[arg-type]  # a kind
        return invoke

    def deliver(self, id_: str, *, tag: int, to: str = ALICE, epoch: int = 0, **facts: Any) -> Wire:
        fields = {"amqp_queue": "bw.q.default", "name": "plain", "digest": digest(id_), "body": sha(id_)}
        return self.tell(
            Wire(
                kind="deliver", connection=to, channel=1, tag=tag, id=id_, epoch=epoch, **{**fields, **facts}
            )
        )

    def ack(self, tag: int, *, of: str = ALICE, **facts: Any) -> Wire:
        return self.tell(Wire(**{"kind": "ack", "connection": of, "channel": 1, "tag": tag, **facts}))

    def relay(self, row: OutboxChange, *, tag: int, by: str = ALICE) -> None:
        """Publish what an outbox row stands for, hear the confirm, delete the row."""
        self.send(row, tag=tag, by=by)
        self.confirm(tag, to=by)
        self.delete(row)

    def send(self, row: OutboxChange, *, tag: int, by: str = ALICE, **facts: Any) -> Wire:
        id_ = next((id_ for id_, each in self.rows.items() if each.key == row.key), "")
        exchange = {"copy": "bw.tasks", "dead_letter": "bw.dlx"}.get(row.kind, "")
        fields = {
            "exchange": exchange,
            "routing_key": row.routing_key,
            "id": id_,
            "name": self.rows[id_].name if id_ else "",
            "epoch": row.epoch,
            "letter": row.letter,
            "digest": digest(id_),
            "mandatory": True,
            "message_id": f"m{tag}{by}",
            "headers": ["bw-task-id", "bw-epoch"],
        }
        wire = self.tell(Wire(kind="publish", connection=by, channel=2, tag=tag, **{**fields, **facts}))
        if row.letter:
            name = self.rows[id_].name
            self.tell(Received(kind="letter", letter=row.letter, queue="default", name=name, id=id_))
        return wire

    def confirm(self, tag: int, *, to: str = ALICE, **facts: Any) -> Wire:
        return self.tell(Wire(**{"kind": "confirm", "connection": to, "channel": 2, "tag": tag, **facts}))

    def delete(self, row: OutboxChange) -> OutboxChange:
        return self.tell(replace(row, op="delete", xid=self.xid()))

    # --- the database ----------------------------------------------------------------------

    def step(self, id_: str, state: str, *, xid: int = 0, **facts: Any) -> TaskChange:
        """Change the row of a task; what is not named stays."""
        last = self.rows.get(id_) or TaskChange(
            key=self.xid(), queue="default", name="plain", id=id_, digest=digest(id_), max_attempts=3
        )
        change = replace(
            last,
            xid=xid or self.xid(),
            old_state=last.new_state,
            old_epoch=last.new_epoch,
            old_attempt=last.new_attempt,
            old_worker=last.new_worker,
            old_body=last.new_body,
            new_state=state,
            **facts,
        )
        self.rows[id_] = change
        self.tell(change)
        return change

    def claim(self, id_: str, *, worker: str = ALICE, **facts: Any) -> TaskChange:
        last = self.rows.get(id_)
        epoch, attempt = (last.new_epoch, last.new_attempt) if last else (0, 0)
        fields = {"new_epoch": epoch + 1, "new_attempt": attempt + 1, "new_worker": worker, "new_body": False}
        if last is not None and last.new_state == "running":
            xid = self.xid()
            self.record(id_, xid, "crashed")
            return self.step(id_, "running", xid=xid, **{**fields, "new_body": last.new_body, **facts})
        return self.step(id_, "running", **{**fields, "new_body": bool(last and last.new_body), **facts})

    def record(self, id_: str, xid: int, outcome: str) -> None:
        row = self.rows[id_]
        self.tell(
            AttemptChange(
                key=row.key,
                epoch=row.new_epoch,
                attempt=row.new_attempt,
                worker=row.new_worker,
                outcome=outcome,
                xid=xid,
            )
        )

    def owe(self, id_: str, kind: str, xid: int, **facts: Any) -> OutboxChange:
        row = self.rows[id_]
        fields = {"epoch": row.new_epoch, "routing_key": "default", **facts}
        return self.tell(
            OutboxChange(op="insert", number=self.xid(), kind=kind, key=row.key, xid=xid, **fields)
        )

    def succeed(self, id_: str, *, effects: int = 0) -> TaskChange:
        """End well; with so many effects in the same commit."""
        xid = self.xid()
        row = self.rows[id_]
        for _ in range(effects):
            self.effect(id_, xid)
        return self.step(id_, "succeeded", xid=xid, new_body=False, new_worker=row.new_worker)

    def effect(self, id_: str, xid: int, amount: int = 0) -> None:
        row = self.rows[id_]
        self.tell(
            Effect(queue="default", name=row.name, id=id_, attempt=row.new_attempt, xid=xid, amount=amount)
        )

    def fail(self, id_: str) -> OutboxChange:
        """Fail an attempt that another follows; answer with the copy owed."""
        xid = self.xid()
        self.record(id_, xid, "failed")
        self.step(id_, "retrying", xid=xid, new_body=True)
        return self.owe(id_, "copy", xid)

    def release(self, id_: str) -> OutboxChange:
        xid, row = self.xid(), self.rows[id_]
        self.record(id_, xid, "released")
        given = row.new_attempt - 1
        interruptions = row.interruptions + 1
        self.step(id_, "queued", xid=xid, new_body=True, new_attempt=given, interruptions=interruptions)
        return self.owe(id_, "copy", xid)

    def rescue(self, id_: str) -> OutboxChange:
        """Send again what runs under a dead worker."""
        xid, epoch = self.xid(), self.rows[id_].new_epoch + 1
        self.record(id_, xid, "crashed")
        self.step(id_, "retrying", xid=xid, new_epoch=epoch, new_body=True, reason="crashed")
        return self.owe(id_, "copy", xid)

    def put_off(self, id_: str) -> OutboxChange:
        last = self.rows.get(id_)
        xid, epoch = self.xid(), last.new_epoch if last else 0
        self.step(id_, "queued", xid=xid, new_epoch=epoch + 1, new_body=True)
        return self.owe(id_, "copy", xid)

    def die(self, id_: str, reason: str = "gave_up") -> OutboxChange:
        """End a run as dead; answer with the letter owed."""
        xid = self.xid()
        if self.rows[id_].new_state == "running":
            self.record(id_, xid, reason)
        row = self.step(id_, "dead", xid=xid, new_body=False, reason=reason)
        letter = f"letter-{id_}-{row.new_epoch}"
        self.keep(id_, letter, reason, xid=xid, key=row.key)
        return self.owe(id_, "dead_letter", xid, letter=letter)

    def keep(self, id_: str, letter: str, reason: str, *, xid: int = 0, key: int = 0) -> None:
        """Keep a dead letter."""
        fields: dict[str, Any] = {
            "letter": letter,
            "key": key,
            "queue": "default",
            "id": id_,
            "reason": reason,
        }
        fields["body"] = sha(id_)
        self.tell(LetterChange(op="insert", xid=xid or self.xid(), **fields))
        self._letters[letter] = FinalLetter(**fields)

    def bury_worker(self, worker: str, *, after: float = 20.0) -> WorkerChange:
        """Let a worker be declared dead so long after its last beat."""
        return self.tell(WorkerChange(op="dead", worker=worker, xid=self.xid(), beat_at=self.now - after))

    # --- handlers, and the rest ------------------------------------------------------------

    def begin(self, id_: str) -> Run:
        row = self.rows[id_]
        return self.tell(
            Run(
                kind="began",
                queue="default",
                name=row.name,
                id=id_,
                attempt=row.new_attempt,
                worker=row.new_worker,
                process=row.new_worker,
            )
        )

    def run(self, id_: str) -> None:
        begun = self.begin(id_)
        self.tell(replace(begun, kind="ended"))

    def send_child(self, id_: str, child: str, *, kind: str = "task") -> Child:
        row = self.rows[id_]
        return self.tell(
            Child(
                kind=kind,  # type: ignore[arg-type]  # a kind
                queue="default",
                name=row.name,
                id=id_,
                attempt=row.new_attempt,
                child_queue="default",
                child_name="plain",
                child_id=child,
            )
        )

    def lose(self, connection: str) -> None:
        self.tell(Wire(kind="lost", connection=connection))

    def fault(self, kind: str, *, number: int, lasts: float = 1.0, **facts: Any) -> None:
        self.tell(Fault(phase="begun", number=number, kind=kind))
        self.now += lasts
        self.tell(Fault(phase="healed", number=number, kind=kind, **facts))

    def log(self, line: str) -> None:
        self.tell(LogLine(process=ALICE, line=line))

    def end(self) -> Recording:
        """Write down how the tables are, when all is quiet."""
        about, recording = self.recording.about, self.recording
        about.healed_at = about.healed_at or self.now
        self.tell(Sample(amqp_queue="bw.q.default", ready=0, unacked=0))
        about.ended_at = self.now
        for row in self.rows.values():
            recording.add(
                FinalTask(
                    at=self.now,
                    key=row.key,
                    queue=row.queue,
                    name=row.name,
                    id=row.id,
                    digest=row.digest,
                    state=row.new_state,
                    attempt=row.new_attempt,
                    max_attempts=row.max_attempts,
                    epoch=row.new_epoch,
                    worker=row.new_worker,
                    reason=row.reason,
                )
            )
        for letter in self._letters.values():
            recording.add(letter)
        return recording

    def task(self, id_: str, name: str = "plain") -> TaskKey:
        return TaskKey("default", name, id_)


def plain(story: Story, id_: str, *, tag: int, name: str = "plain") -> None:
    """One task from its publish to its ack."""
    story.publish(id_, name=name)
    story.deliver(id_, tag=tag, name=name)
    story.claim(id_, name=name)
    story.run(id_)
    story.succeed(id_, effects=int(name == "transfer"))
    story.ack(tag)


def retried(story: Story, id_: str, *, tag: int) -> None:
    """One that fails, is tried again, and ends as a dead letter."""
    story.publish(id_)
    story.deliver(id_, tag=tag)
    story.claim(id_)
    story.run(id_)
    copy = story.fail(id_)
    story.ack(tag)
    story.relay(copy, tag=tag)
    story.deliver(id_, tag=tag + 1, epoch=1)
    story.claim(id_)
    story.run(id_)
    letter = story.die(id_)
    story.ack(tag + 1)
    story.relay(letter, tag=tag + 1)


def taken_over(story: Story, id_: str, *, tag: int) -> None:
    """One whose worker is lost: another gives the row its body, and finds it dead in the end."""
    story.publish(id_)
    story.deliver(id_, tag=tag)
    story.claim(id_)
    story.begin(id_)
    story.lose(ALICE)
    story.deliver(id_, tag=tag, to=BOB, redelivered=True)
    story.step(id_, "running", new_body=True)
    story.ack(tag, of=BOB)
    story.bury_worker(ALICE)
    copy = story.rescue(id_)
    story.relay(copy, tag=tag, by=BOB)
    story.deliver(id_, tag=tag + 1, to=BOB, epoch=copy.epoch)
    story.claim(id_, worker=BOB)
    story.run(id_)
    story.succeed(id_)
    story.ack(tag + 1, of=BOB)


def put_off(story: Story, id_: str, *, tag: int) -> None:
    """One that has to wait, is released by a worker that ends, and runs again."""
    story.publish(id_, deliver_at=story.now + 5)
    story.deliver(id_, tag=tag, to=BOB)
    copy = story.put_off(id_)
    story.ack(tag, of=BOB)
    story.now += 5
    story.relay(copy, tag=tag, by=BOB)
    story.deliver(id_, tag=tag + 1, to=BOB, epoch=1)
    story.claim(id_, worker=BOB)
    story.run(id_)
    copy = story.release(id_)
    story.ack(tag + 1, of=BOB)
    story.relay(copy, tag=tag + 1, by=BOB)
    story.deliver(id_, tag=tag + 2, to=BOB, epoch=2)
    story.claim(id_, worker=BOB)
    story.run(id_)
    story.succeed(id_)
    story.ack(tag + 2, of=BOB)


def twice(story: Story, id_: str, *, tag: int) -> None:
    """One that was published twice, because nobody heard the first confirm."""
    story.publish(id_, kind="info")
    story.publish(id_)
    story.deliver(id_, tag=tag, to=BOB)
    story.deliver(id_, tag=tag + 1, to=BOB)
    story.claim(id_, worker=BOB)
    story.ack(tag + 1, of=BOB)
    story.run(id_)
    story.succeed(id_)
    story.ack(tag, of=BOB)


def everything() -> Story:
    """A run in which a bit of everything happens, and all of it is right."""
    story = Story()
    plain(story, "simple", tag=1)
    plain(story, "booked", tag=2, name="transfer")
    retried(story, "retried", tag=3)
    taken_over(story, "taken over", tag=5)
    put_off(story, "put off", tag=7)
    twice(story, "twice", tag=10)
    return story

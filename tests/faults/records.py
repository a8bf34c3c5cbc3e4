"""What a run leaves behind for the checker: the record types of each file of its directory.

Who runs something (the deterministic simulation in memory, or real servers behind a proxy) writes these;
`checker.py` reads them and nothing else. A record holds what was seen, raw; what it means is the checker's.

**One clock.** `at` is seconds since the Unix epoch, of the one machine that all of it runs on (in the
simulation: of its virtual clock). Postgres stamps its rows by the same machine's clock, which monotonic
time could not say. Nothing may step that clock during a run: a daemon that is to see another time gets it
alone.

**One order.** `order` tells records of one instant apart. The simulation numbers all records of all files by
one counter and says so (`Run.has_one_order`); else it counts within its file, and of two records of different
files with the same `at` each may have been first. The order of lines in a file means nothing.

**One name.** A task is (queue, name, id), as the publisher knows them: queues without the prefix. Where a
record says `amqp_queue` it is the broker's name. A recorder fills what it sees and leaves the rest at its
default, which is not written: `{"at": 1.5, "kind": "ack", "connection": "w1#3", "channel": 1, "tag": 7}`.

Files: one JSON object a line. Any number of programs may each write a part: `wire.jsonl` and `wire.2.jsonl`
are one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

# Not frozen: there are millions of them, and a frozen one takes five times as long to make.


class TaskKey(NamedTuple):
    """What makes two messages the same task."""

    queue: str
    name: str
    id: str


@dataclass(slots=True, kw_only=True)
class Record:
    """A line of a file."""

    file: ClassVar[str]  # without .jsonl

    at: float = 0.0
    order: int = 0


@dataclass(slots=True, kw_only=True)
class Publish(Record):
    """publisher.jsonl: one step of one publish, by a program that shares no library with the daemon.

    `invoke` before it is sent; then one of `ok` (the broker confirmed it and did not return it), `fail` (it
    surely is not in the broker: returned, refused, or never sent) and `info` (nobody knows: the connection
    was lost, no confirm in time). An `invoke` without an answer is an `info`.
    """

    file = "publisher"

    kind: Literal["invoke", "ok", "fail", "info"]
    number: int  # of this publish; the same in its answer; several may be of one task (duplicates)
    # with the invoke only:
    queue: str = ""
    name: str = ""
    id: str = ""  # "": without one, to be stamped, or unreadable
    digest: str = ""  # of `digest_of`: what tells two messages of one identity apart
    body: str = ""  # SHA-256 of the body alone, hex: by it letters of what is no task are found
    reply_to: str = ""
    deliver_at: float | None = None  # not to be started before
    not_after: float | None = None  # not to be started after
    expects: Literal["", "task", "letter"] = (
        ""  # "letter": breaks the contract, ends as a dead letter without row
    )


@dataclass(slots=True, kw_only=True)
class Wire(Record):
    """wire.jsonl: what passed between the daemons and the servers.

    `at` is when the witness had read the whole frame, before it passed it on.

    AMQP. Acks and confirms name tags; the checker finds what they are of, and expands `multiple` itself.

    ===============  ==============================================================================
    `opened`         a connection came: `process`, `connection`
    `lost`           it is over, whoever ended it; what was unsettled on it is the broker's again
    `channel_lost`   a channel is over (closed by either side): `channel`
    `deliver`        to the daemon: `tag`, `redelivered`, `amqp_queue`, and the message's fields
    `cancelled`      the broker cancelled a consumer: `amqp_queue`
    `ack` `nack`     by the daemon: `tag`, `multiple`, for `nack` also `requeue`
    `reject`         by the daemon: `tag`, `requeue`
    `publish`        by the daemon: `tag` (its number on a channel in confirm mode, from 1), `mandatory`,
                     `exchange`, `routing_key`, and the message's fields
    `returned`       by the broker: `message_id`, `exchange`, `routing_key`; its confirm follows
    `confirm`        by the broker: `tag`, `multiple`
    `refused`        the broker's nack of a publish: `tag`, `multiple`
    ===============  ==============================================================================

    Postgres. One commit may carry many tasks, which the wire can't tell: it counts, the history knows.

    ===============  ==============================================================================
    `commit`         sent: a COMMIT, or the end of a statement that is a transaction of its own
    `committed`      the reply to it; a `commit` without one before `lost` is an unknown outcome
    ===============  ==============================================================================
    """

    file = "wire"

    kind: Literal[
        "opened",
        "lost",
        "channel_lost",
        "deliver",
        "cancelled",
        "ack",
        "nack",
        "reject",
        "publish",
        "returned",
        "confirm",
        "refused",
        "commit",
        "committed",
    ]
    connection: str = ""  # unique in the run
    process: str = ""  # whose connection it is, where the witness knows: a name of processes.jsonl
    channel: int = 0
    tag: int = 0
    multiple: bool = False
    requeue: bool = False
    redelivered: bool = False
    mandatory: bool = False
    is_passed: bool = True  # False: a fault swallowed it here, and the other side never saw it
    amqp_queue: str = ""  # of the consumer
    exchange: str = ""
    routing_key: str = ""
    # the message's fields, raw, as they travel
    name: str = ""  # property type, else header task-type
    id: str = ""  # header bw-task-id, else property message_id, else header task-id
    message_id: str = ""  # the property
    correlation_id: str = ""
    epoch: int = 0  # header bw-epoch
    attempt: int = 0  # header bw-attempt
    digest: str = ""  # of `digest_of`
    body: str = ""  # SHA-256 of the body alone, hex
    letter: str = ""  # header bw-dead-letter-id
    event: str = ""  # header bw-event-id
    reason: str = ""  # header bw-reason
    headers: Sequence[str] = ()  # their names, of a publish


@dataclass(slots=True, kw_only=True)
class Change(Record):
    """A committed change of a row, as an AFTER trigger saw it, owned by a role that no worker can act as.

    What was rolled back took its row of history with it. `order` is the history's own sequence
    and `at` `clock_timestamp()` within the transaction; both say when it was written, not when it counted.
    """

    xid: int = 0  # pg_current_xact_id(), the top one: equal for all of one commit
    committed_at: float | None = None  # pg_xact_commit_timestamp(xid); None where nobody can say
    actor: str = ""  # the worker that wrote it, where the recorder knows (the simulation does)


@dataclass(slots=True, kw_only=True)
class TaskChange(Change):
    """history.jsonl: a row of `tasks`. `new_state` "" is a row that was deleted, `old_state` "" a new one.

    An update that touches none of the columns below, nor `finished_at`, is left out (progress, dates).
    """

    file = "history"

    key: int
    queue: str
    name: str
    id: str
    digest: str = ""  # hex
    old_state: str = ""
    new_state: str = ""
    old_epoch: int = 0
    new_epoch: int = 0
    old_attempt: int = 0
    new_attempt: int = 0
    old_worker: str = ""
    new_worker: str = ""
    old_body: bool = False  # has_body
    new_body: bool = False
    interruptions: int = 0  # new
    max_attempts: int = 0  # new
    reason: str = ""  # new
    is_cancel_requested: bool = False  # new
    reply_to: str = ""


@dataclass(slots=True, kw_only=True)
class OutboxChange(Change):
    """history_outbox.jsonl: a row of `outbox` that was written or deleted; updates are not recorded."""

    file = "history_outbox"

    op: Literal["insert", "delete"]
    number: int  # its id
    kind: str  # copy, dead_letter, reply, event
    key: int = 0  # task_key; 0: none
    epoch: int = 0
    letter: str = ""  # dead_letter
    event: str = ""  # header bw-event-id of its properties
    routing_key: str = ""
    failures: int = 0


@dataclass(slots=True, kw_only=True)
class AttemptChange(Change):
    """history_attempts.jsonl: a row of `attempts` that was written."""

    file = "history_attempts"

    key: int
    epoch: int
    attempt: int
    worker: str = ""
    outcome: str = ""


@dataclass(slots=True, kw_only=True)
class LetterChange(Change):
    """history_letters.jsonl: a row of `dead_letters` that was written, opened again, or resolved."""

    file = "history_letters"

    op: Literal["insert", "update", "delete"]
    letter: str
    key: int = 0  # task_key
    queue: str = ""
    name: str = ""
    id: str = ""  # message_id
    reason: str = ""
    resolution: str = ""  # new: "", replayed, discarded
    body: str = ""  # SHA-256, hex


@dataclass(slots=True, kw_only=True)
class WorkerChange(Change):
    """history_workers.jsonl: a row of `workers` that was written, or whose dead_at was set. Not its beats.

    `left` is a worker that said so itself at its end, where the recorder can tell that from a death that
    another declared (whose statement compares the beat: `current_query() LIKE '%beat =%'`); else `dead`.
    """

    file = "history_workers"

    op: Literal["insert", "dead", "left"]
    worker: str
    host: str = ""  # its `name`
    beat: int = 0
    beat_at: float | None = None  # of `dead` and `left`: when it had beaten last


@dataclass(slots=True, kw_only=True)
class Effect(Record):
    """effects.jsonl: a transactional handler's row, of its transaction, in a table without any unique key."""

    file = "effects"

    queue: str
    name: str
    id: str
    attempt: int
    xid: int = 0  # pg_current_xact_id(): that of the task's own end
    amount: int = 0  # of one side of a transfer; all sides of all tasks together are zero


@dataclass(slots=True, kw_only=True)
class Run(Record):
    """runs.jsonl: a handler began or ended; appended and synced to a file before it goes on."""

    file = "runs"

    kind: Literal["began", "ended"]
    queue: str
    name: str
    id: str
    attempt: int
    worker: str = ""  # where the handler knows it
    process: str = ""  # a name of processes.jsonl


@dataclass(slots=True, kw_only=True)
class Child(Record):
    """children.jsonl: a task or an event that a handler has sent, not yet committed, as it says itself.

    Its id names the attempt that sent it, so that one of an attempt that was rolled back shows.
    """

    file = "children"

    kind: Literal["task", "event"]
    queue: str  # the parent's identity, and attempt
    name: str
    id: str
    attempt: int
    child_queue: str = ""  # a task's identity
    child_name: str = ""
    child_id: str = ""  # of a task; of an event: a text of the handler's own that its body carries


@dataclass(slots=True, kw_only=True)
class Received(Record):
    """received.jsonl: what came to queues of the witness: all dead letters, events, replies."""

    file = "received"

    kind: Literal["letter", "event", "reply"]
    letter: str = ""  # header bw-dead-letter-id
    event: str = ""  # header bw-event-id
    child_id: str = ""  # of an event: the handler's text, from the body
    queue: str = ""  # of the task that it is about
    name: str = ""
    id: str = ""
    correlation_id: str = ""
    reason: str = ""
    state: str = ""  # of a reply
    body: str = ""  # SHA-256, hex


@dataclass(slots=True, kw_only=True)
class FinalTask(Record):
    """final_tasks.jsonl: `tasks` when all was quiet."""

    file = "final_tasks"

    key: int
    queue: str
    name: str
    id: str
    digest: str = ""
    state: str
    attempt: int
    max_attempts: int
    epoch: int
    interruptions: int = 0
    has_body: bool = False
    worker: str = ""
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class FinalLetter(Record):
    """final_letters.jsonl: `dead_letters` when all was quiet."""

    file = "final_letters"

    letter: str
    key: int = 0
    queue: str = ""
    name: str = ""
    id: str = ""
    reason: str = ""
    resolution: str = ""  # "": open
    body: str = ""  # SHA-256, hex


@dataclass(slots=True, kw_only=True)
class FinalOutbox(Record):
    """final_outbox.jsonl: `outbox` when all was quiet; best none."""

    file = "final_outbox"

    number: int
    kind: str
    key: int = 0
    epoch: int = 0


@dataclass(slots=True, kw_only=True)
class Sample(Record):
    """broker.jsonl: one queue of the broker, each second; the last one of each when all was quiet."""

    file = "broker"

    amqp_queue: str
    ready: int
    unacked: int
    consumers: int = 0


@dataclass(slots=True, kw_only=True)
class Fault(Record):
    """faults.jsonl: something was broken (`begun`), or mended (`healed`); a kill is both at once."""

    file = "faults"

    phase: Literal["begun", "healed"]
    number: int  # of the fault; the same in both
    kind: str  # worker_kill, broker_restart, ...
    target: str = ""  # process, connection, queue
    bound: float | None = (
        None  # seconds that detecting and mending may take after `healed`; None: `Run.recovery`
    )
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Process(Record):
    """processes.jsonl: a process began, ended, or was looked at."""

    file = "processes"

    kind: Literal["began", "ended", "sample"]
    process: str  # a name that is unique in the run: "worker-2.3" is the third process in place 2
    pid: int = 0
    worker: str = ""  # the id of its row in `workers`, where known
    exit_code: int | None = None  # of `ended`; minus the signal that killed it
    is_expected: bool = True  # of `ended`: somebody told it to end, or killed it
    rss: int = 0  # bytes; of `sample`, as all below
    fds: int = 0
    threads: int = 0
    backends: int = 0  # its connections to Postgres
    oldest_transaction: float = 0.0  # seconds that one of them has been idle in a transaction


@dataclass(slots=True, kw_only=True)
class LogLine(Record):
    """logs.jsonl: a line that a daemon wrote."""

    file = "logs"

    process: str
    line: str


@dataclass(slots=True, kw_only=True)
class HandlerFacts:
    """What the handlers of one task do, as far as the checker has to know."""

    is_transactional: bool = False  # writes `effects` in its transaction
    is_recorded: bool = True  # writes `runs`


@dataclass(slots=True, kw_only=True)
class About:
    """about.json: the run itself."""

    seed: int = 0
    source: Literal["simulation", "servers"] = "servers"
    prefix: str = "bw"
    handlers: dict[str, HandlerFacts] = field(
        default_factory=dict
    )  # by task name; any other: `HandlerFacts()`
    prefetch: int = 1  # of all queues of one process together
    has_one_order: bool = False  # `order` is one counter over all files
    has_quiet_end: bool = (
        True  # it was waited for the end of all work: without that, nothing is said of the end
    )
    is_whole: bool = (
        True  # every file is there; False: an empty one may be one that nobody wrote, and proves nothing
    )
    began_at: float = 0.0
    healed_at: float = 0.0  # from here on nothing was broken
    ended_at: float = 0.0  # all was quiet
    recovery: float = 10.0  # seconds from a heal to the first success
    leeway: float = 0.0  # seconds by which two clocks of the machine may differ; for times, not for orders
    secrets: list[str] = field(default_factory=list)  # canaries that no log line may hold


AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(slots=True, kw_only=True)
class Recording:
    """All files of a run."""

    about: About = field(default_factory=About)
    publisher: list[Publish] = field(default_factory=list)
    wire: list[Wire] = field(default_factory=list)
    history: list[TaskChange] = field(default_factory=list)
    history_outbox: list[OutboxChange] = field(default_factory=list)
    history_attempts: list[AttemptChange] = field(default_factory=list)
    history_letters: list[LetterChange] = field(default_factory=list)
    history_workers: list[WorkerChange] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    final_tasks: list[FinalTask] = field(default_factory=list)
    final_letters: list[FinalLetter] = field(default_factory=list)
    final_outbox: list[FinalOutbox] = field(default_factory=list)
    broker: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    logs: list[LogLine] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Append `record` to the file that it belongs to."""
        getattr(self, record.file).append(record)

    def all(self) -> Iterator[Record]:
        """Every record of every file."""
        for kind in RECORDS:
            yield from getattr(self, kind.file)

    def dump(self, directory: Path) -> None:
        """Write the files of `directory`, which may be there."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "about.json").write_text(dump_about(self.about) + "\n")
        for kind in RECORDS:
            with (directory / f"{kind.file}.jsonl").open("w") as lines:
                lines.writelines(line(record) + "\n" for record in getattr(self, kind.file))

    @classmethod
    def load(cls, directory: Path) -> Recording:
        """Read the files of `directory`; one that is not there is empty."""
        recording = cls(about=load_about((directory / "about.json").read_text()))
        for kind in RECORDS:
            for path in [directory / f"{kind.file}.jsonl", *sorted(directory.glob(f"{kind.file}.*.jsonl"))]:
                if path.exists():
                    getattr(recording, kind.file).extend(read(kind, path))
        _TEXTS.clear()
        return recording


RECORDS: tuple[type[Record], ...] = (
    Publish,
    Wire,
    TaskChange,
    OutboxChange,
    AttemptChange,
    LetterChange,
    WorkerChange,
    Effect,
    Run,
    Child,
    Received,
    FinalTask,
    FinalLetter,
    FinalOutbox,
    Sample,
    Fault,
    Process,
    LogLine,
)


def line(record: Record) -> str:
    """One record as a line of its file, without the end of the line, and without what is at its default."""
    named = ((name, getattr(record, name), default) for name, default in _DEFAULTS[type(record)])
    return json.dumps({name: value for name, value, default in named if value != default})


def read(kind: type[AnyRecord], path: Path) -> list[AnyRecord]:
    """Read one file; a last line that a crash cut off is left out.

    Raises:
        ValueError: a line is none of `kind`; it says which.
    """
    records = []
    with path.open() as lines:
        for number, text in enumerate(lines, 1):
            if not text.endswith("\n"):
                break
            try:
                values = json.loads(text)
                shared: dict[str, Any] = {
                    name: _TEXTS.setdefault(value, value) if value.__class__ is str else value
                    for name, value in values.items()
                }
                records.append(kind(**shared))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path.name}, line {number}: {error}") from error
    return records


_TEXTS: dict[str, str] = {}  # what was read: ids and hashes come in many records each


def digest_of(content_type: str | None, body: bytes) -> str:
    """Tell messages of one identity apart by the contract: SHA-256 over media type, NUL and body."""
    media = (content_type or "").partition(";")[0].strip().lower() or "application/json"
    return hashlib.sha256(media.encode() + b"\0" + body).hexdigest()


def dump_about(about: About) -> str:
    """`about.json`, to be read by people as well."""
    facts = {each.name: getattr(about, each.name) for each in fields(About)}
    facts["handlers"] = {
        name: {each.name: getattr(handler, each.name) for each in fields(HandlerFacts)}
        for name, handler in about.handlers.items()
    }
    return json.dumps(facts, indent=2)


def load_about(text: str) -> About:
    """Undo `dump_about`."""
    facts: Mapping[str, Any] = json.loads(text)
    handlers = {name: HandlerFacts(**each) for name, each in facts.get("handlers", {}).items()}
    return About(**{**facts, "handlers": handlers})


def _default(each: Field[Any]) -> object:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default  # MISSING where it has to be given, and so is always written


_DEFAULTS = {kind: [(each.name, _default(each)) for each in fields(kind)] for kind in RECORDS}

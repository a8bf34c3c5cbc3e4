"""A service whose daemons are made to fail, and what must be true of it however they failed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row

from broker_worker.failpoints import REACHED
from tests.e2e.conftest import Service, message
from tests.support.daemon import DaemonProcess, until
from tests.support.forks import Fork, Forks
from tests.support.raw_amqp import FLAG, raw_publisher, short
from tests.support.services import RunningServers, fresh_broker, fresh_database

HANDLERS, CHILD = "tests.support.failpoint_handlers", "tests.support.failpoint_child"
BATCH = ("plain", "thread", "effect", "effect_fails_once", "fails_once", "gives_up")
SENDERS = ("effect", "effect_fails_once")
FAILURES = {"fails_once": 1, "effect_fails_once": 1, "gives_up": 1}  # of the handlers' own, at most
UNTIL_SCHEDULED = timedelta(seconds=6)  # longer than a message takes to a daemon that is ready
_numbers = count(1)


@dataclass
class FailingService(Service):
    """A service that many tests use one after the other, each with tasks of its own."""

    forks: Forks = field(kw_only=True)
    database: psycopg.Connection[dict[str, object]] = field(kw_only=True)
    is_known_good: bool = True
    was_started: bool = False

    def start(self, *, ready: bool = True, **settings: str) -> DaemonProcess:
        return self.start_with(settings, ready=ready)

    def start_with(self, settings: Mapping[str, str], *, ready: bool = True) -> DaemonProcess:
        log = self.folder / f"daemon-{uuid4().hex[:6]}.log"
        declare = {"DECLARE": "false" if self.was_started else "true"}
        environment = self.environment(**{**declare, **settings})
        worker = DaemonProcess(environment, log, spawn=self.forks.spawn)
        self.running.callback(worker.end)
        if ready:
            worker.wait_ready()
            self.was_started = True
        return worker

    def begin(self, *arguments: str, **settings: str) -> tuple[Fork, Path]:
        """Start a command, and come back while it runs."""
        log = self.folder / f"command-{uuid4().hex[:6]}.log"
        return self.forks.command(self.environment(**settings), log, *arguments), log

    def find(self, query: str, *values: object) -> list[dict[str, object]]:
        return self.database.execute(query, values).fetchall()

    def declare_dead(self, pid: int | None = None) -> None:
        """Say what the others would find out, of one worker or of all: those are not alive any more."""
        self.database.execute(
            "UPDATE broker_worker.workers SET dead_at = now() WHERE dead_at IS NULL AND name LIKE %s",
            [f"%:{pid}" if pid else "%"],
        )


@contextmanager
def failing_service(running: RunningServers, forks: Forks, folder: Path) -> Iterator[FailingService]:
    """Make one, with a table in which effects are counted, not forbidden to come twice."""
    folder.mkdir()
    with ExitStack() as stack:
        broker = stack.enter_context(fresh_broker(running.servers))
        url = stack.enter_context(fresh_database(running))
        database = stack.enter_context(psycopg.connect(url, autocommit=True, row_factory=dict_row))
        database.execute("CREATE TABLE public.effects (task_id text NOT NULL)")
        settings = {"HANDLERS": HANDLERS, "QUEUES": "default:16", "SHUTDOWN_GRACE": "1s"}
        service = FailingService(
            broker.url, url, broker.prefix, folder, stack, settings, forks=forks, database=database
        )
        assert service.start().stop() == 0  # what it declares is there for those that fail early
        yield service


@dataclass
class Batch:
    """The tasks of one test: some of each kind, under ids of their own."""

    service: FailingService
    kinds: Sequence[str]
    allows_failures: int = 0  # more than the handlers' own
    allows_crashes: int = 0
    was_replayed: bool = False  # its attempts were counted anew
    name: str = field(default_factory=lambda: f"batch{next(_numbers)}")  # is in no UUID

    @property
    def handlers(self) -> str:
        """The modules that these tasks need."""
        return f"{HANDLERS},{CHILD}" if "child" in self.kinds else HANDLERS

    def publish(self) -> None:
        soon = {"deliver-at": (datetime.now(UTC) + UNTIL_SCHEDULED).isoformat()}
        messages = []
        for kind in self.kinds:
            match kind:
                case "scheduled":
                    messages.append(message("plain", self.id_of(kind), headers=soon))
                case "stamped":
                    asyncio.run(publish_without_an_id(self.service))
                case _:
                    messages.append(message(kind, self.id_of(kind)))
        self.service.publish(*messages)

    def id_of(self, kind: str) -> str:
        return f"{self.name}-{kind}"

    @property
    def expected(self) -> dict[str, str]:
        """The state in which each task has to end."""
        states = {
            self.id_of(kind): "dead" if kind == "gives_up" else "succeeded"
            for kind in self.kinds
            if kind != "stamped"
        }
        return states | {f"sent-by-{self.id_of(kind)}": "succeeded" for kind in self.kinds if kind in SENDERS}

    def states(self) -> dict[str, str]:
        rows = self.service.find(
            "SELECT message_id, state FROM broker_worker.tasks WHERE message_id LIKE %s", f"%{self.name}-%"
        )
        return {str(row["message_id"]): str(row["state"]) for row in rows}

    @property
    def is_done(self) -> bool:
        return self.states() == self.expected and self._stamped_are_done()

    def _stamped_are_done(self) -> bool:
        """A message without an id is one task, or two where its copy was sent twice."""
        rows = self.service.find("SELECT state FROM broker_worker.tasks WHERE length(message_id) = 36")
        states = [row["state"] for row in rows]
        return "stamped" not in self.kinds or (bool(states) and set(states) == {"succeeded"})

    def check(self) -> None:
        """Everything ended, once, and was charged for no more than it did."""
        until("everything has ended", lambda: self.is_done, seconds=120)
        service = self.service
        until("the outbox is empty", lambda: not service.find("SELECT id FROM broker_worker.outbox"))
        until("the work queue is empty", lambda: service.depth() == 0)
        running = "SELECT key FROM broker_worker.tasks WHERE state = 'running'"
        until("nothing runs", lambda: not service.find(running))  # a stamped one may have come twice
        self._check_effects()
        self._check_letters()
        self._check_charges()
        runs = service.runs()
        assert all(runs[task] >= 1 for task in self.expected)

    def _check_effects(self) -> None:
        rows = self.service.find("SELECT task_id FROM public.effects WHERE task_id LIKE %s", f"{self.name}-%")
        effects = Counter(str(row["task_id"]) for row in rows)
        assert effects == {self.id_of(kind): 1 for kind in self.kinds if kind in SENDERS}

    def letters(self) -> dict[object, tuple[object, object]]:
        """The open dead letters, by id."""
        rows = self.service.find(
            """SELECT id, message_id, reason FROM broker_worker.dead_letters
               WHERE message_id LIKE %s AND resolved_at IS NULL""",
            f"{self.name}-%",
        )
        return {row["id"]: (row["message_id"], row["reason"]) for row in rows}

    def _check_letters(self) -> None:
        expected = [(self.id_of("gives_up"), "gave_up")] if "gives_up" in self.kinds else []
        assert list(self.letters().values()) == expected

    def _check_charges(self) -> None:
        rows = self.service.find(
            """SELECT t.message_id, t.state, t.attempt,
                 count(*) FILTER (WHERE a.outcome = 'crashed') AS crashes,
                 count(*) FILTER (WHERE a.outcome NOT IN ('crashed', 'released')) AS failures
               FROM broker_worker.tasks t LEFT JOIN broker_worker.attempts a ON a.task_key = t.key
               WHERE t.message_id LIKE %s GROUP BY t.key""",
            f"{self.name}-%",
        )
        for row in rows:
            kind = str(row["message_id"]).removeprefix(f"{self.name}-")
            charged = int(str(row["crashes"])) + int(str(row["failures"]))
            if not self.was_replayed:
                assert row["attempt"] == charged + (row["state"] == "succeeded"), row
            assert int(str(row["crashes"])) <= self.allows_crashes, row
            assert int(str(row["failures"])) <= FAILURES.get(kind, 0) + self.allows_failures, row


async def publish_without_an_id(service: Service) -> None:
    """Publish what no client library would: each adds an id of its own."""
    async with raw_publisher(service.amqp_url) as publisher:
        await publisher.publish(
            f"{service.prefix}.tasks",
            b"default",
            flags=FLAG["message_type"],
            properties=short(b"plain"),
            body=b"{}",
        )


def is_reached(log: Path) -> bool:
    """Whether a failpoint of the process with this log has acted."""
    return REACHED in log.read_text(errors="replace")

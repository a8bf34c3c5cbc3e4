"""The checker kills mutants of a real daemon, from what passes on its wires and in its tables."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import pytest

from broker_worker.local.network import free_ports
from tests.e2e.conftest import Service, message
from tests.faults import history
from tests.faults.amqp_wire import AmqpReader
from tests.faults.checker import check
from tests.faults.handlers import EVENTS, FACTS, FOLDER, PROCESS
from tests.faults.mutants.mutant import Mutant
from tests.faults.mutants.on_servers import MUTANTS
from tests.faults.mutants.planted import PLANTED
from tests.faults.proxy import Gate
from tests.faults.records import About, Record, Recording
from tests.faults.verdict import Verdict
from tests.faults.witness import Witness
from tests.support.daemon import until
from tests.support.wires import through

pytestmark = pytest.mark.timeout(300)

SLOW_CONFIRMS = 0.1  # seconds that each piece needs to RabbitMQ and back: a commit is faster
ENDED = {"succeeded", "dead"}
SLOW = [("slow", f"slow-{number}") for number in range(10)]  # up to four seconds each: some run long enough
TASKS = [
    *(("transfer", f"transfer-{number}") for number in range(10)),
    *(("plain", f"plain-{number}") for number in range(20)),
    *(("falters", f"falters-{number}") for number in range(5)),
    *(("fails", f"fails-{number}") for number in range(3)),
]
PAID = {"plain", "transfer"}
SLOW_RUNS = "SELECT 1 FROM tasks WHERE name = 'slow' AND state = 'running'"
NOWHERE = "nowhere"  # a queue that is not there
NEED_A_CUT = {"", "ack on a stale channel"}


@dataclass
class Watched:
    """A daemon whose way to RabbitMQ leads through a gate, and whose tables have a history."""

    service: Service
    folder: Path
    gate: Gate
    witness: Witness
    loop: asyncio.AbstractEventLoop

    def slow_down(self) -> None:
        self.loop.call_soon_threadsafe(partial(self.gate.weather.change, latency=SLOW_CONFIRMS))

    def cut_off(self) -> None:
        """Cut all connections, and let no other come."""
        for step in (self.gate.refuse, self.gate.reset, self.gate.weather.clear):
            self.loop.call_soon_threadsafe(step)

    def let_come(self) -> None:
        asyncio.run_coroutine_threadsafe(self.gate.open(), self.loop).result(60)

    def verdict(self) -> Verdict:
        """Judge what was seen; nobody wrote a publisher's log, or waited for the end."""
        asyncio.run(dump(self.service.database_url, self.folder))
        self.witness.flush()
        about = About(
            prefix=self.service.prefix, handlers=FACTS, is_whole=False, has_quiet_end=False, leeway=0.002
        )
        (self.folder / "about.json").write_text("{}")
        recording = Recording.load(self.folder)
        recording.about = about
        return check(recording)


async def dump(url: str, folder: Path) -> None:
    """Write the history; servers of tests keep no times of commits."""
    database = await asyncpg.connect(url)
    try:
        for table, kind in history.KINDS.items():
            columns = [each.split()[0] for each in history.split_columns(history.WATCHED[table][2])]
            query = f"SELECT at, seq AS order, xid, {', '.join(columns)} FROM witness.{table} ORDER BY seq"
            await history.write(database, folder, kind, query)
        final: dict[type[Record], str] = dict(history.FINAL)
        for kind, query in final.items():
            await history.write(database, folder, kind, query)
    finally:
        await database.close()


async def prepare(service: Service) -> None:
    database = await asyncpg.connect(service.database_url)
    await history.watch(database, await database.fetchval("SELECT current_user"))
    await database.close()
    connection = await aio_pika.connect(service.amqp_url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_exchange(EVENTS, "fanout", durable=True)


@contextmanager
def watched(service: Service) -> Iterator[Watched]:
    folder = service.folder / "run"
    folder.mkdir()
    asyncio.run(prepare(service))
    address = urlsplit(service.amqp_url)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    witness = Witness(folder / "wire.jsonl")
    gate = Gate("worker", lambda: address.port or 5672, witness, AmqpReader, port=free_ports(1)[0])
    run = Watched(service, folder, gate, witness, loop)
    try:
        run.let_come()
        service.settings |= {
            "AMQP_URL": through(address, gate.port),
            "HANDLERS": "tests.faults.mutants.planted",
            "QUEUES": "default:20",
            "REPLY_TO": NOWHERE,
        }
        with service.running:
            yield run
    finally:
        asyncio.run_coroutine_threadsafe(gate.close(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        witness.close()


def have_ended(states: Mapping[str, int], *, at_least: int) -> bool:
    """Whether all have, and those that transfers sent: nobody knows how many these are."""
    return states.keys() <= ENDED and sum(states.values()) >= at_least


def judged(service: Service, monkeypatch: pytest.MonkeyPatch, mutant: str) -> Verdict:
    """What is found about a daemon at work, which is cut off from RabbitMQ where the mistake needs that."""
    with watched(service) as run:
        monkeypatch.setenv(PLANTED, mutant)
        monkeypatch.setenv(FOLDER, str(run.folder))
        monkeypatch.setenv(PROCESS, "worker.1")
        daemon = service.start()
        run.slow_down()
        slow = [message(name, id_) for name, id_ in SLOW]
        others = [
            *(message(name, id_, {"amount": 1} if name in PAID else {}) for name, id_ in TASKS),
            message("plain", "asking", {"amount": 1}, reply_to=NOWHERE),
        ]
        if mutant not in NEED_A_CUT:
            others = slow + others
        service.publish(*others)
        if mutant in NEED_A_CUT:
            until("some have ended", lambda: service.states().get("succeeded", 0) > 20)
            service.publish(*slow)
            until("they run", lambda: service.rows(SLOW_RUNS))
            run.cut_off()
            until("none is running", lambda: "running" not in service.states())
            run.let_come()
            daemon.wait_ready()
        asked_for = len(TASKS) + len(SLOW) + 1
        until("all have ended", lambda: have_ended(service.states(), at_least=asked_for))
        daemon.stop()
        return run.verdict()


def test_a_daemon_without_a_mistake_passes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = judged(service, monkeypatch, "")

    assert verdict.violations == []
    assert all(verdict.findings[code].checked for code in ("I4", "I5", "I6", "I7", "I8", "I9", "I10", "I16"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_the_checker_kills(service: Service, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    verdict = judged(service, monkeypatch, mutant.name)

    assert mutant.killed_by in verdict.violated, mutant.mistake

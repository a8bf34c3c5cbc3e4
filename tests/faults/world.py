"""A run's world: servers, gates, daemons, publisher; and the faults as they are done to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.daemons import ROOT, Place
from tests.faults.injection import ACTIONS
from tests.faults.proxy import Carrier, Gate
from tests.faults.records import Fault, Record, Sample, line
from tests.faults.schedule import MOST_AT_ONCE, Planned
from tests.faults.servers import FAILED, VHOST, Servers
from tests.faults.witness import Rule, Trigger, Witness
from tests.faults.workload import SIDE

PREFIX = "bw"
PATIENCE = 6.0  # seconds that a fault waits for its event; then it comes without
SECONDS_TO_BE_EMPTY = 120.0
SECONDS_FOR_ONE = 300.0


class NotDoneError(Exception):
    """A fault could not be done now."""


@dataclass(eq=False)
class World:
    """All that a run has."""

    folder: Path
    servers: Servers
    witness: Witness
    places: list[Place]
    publishers_gate: Gate
    mortal: int  # so many places have daemons that are killed; those behind live as long as the run
    records: list[Record] = field(default_factory=list)
    publisher: asyncio.subprocess.Process | None = None
    done: Counter[str] = field(default_factory=Counter)
    not_done: Counter[str] = field(default_factory=Counter)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _answers: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def note(self, record: Record) -> None:
        """Keep a record for its file."""
        record.at = record.at or time.time()
        record.order = len(self.records)
        self.records.append(record)

    def write(self) -> None:
        """Write what was kept, a file for each kind."""
        by_file: dict[str, list[str]] = {}
        for record in self.records:
            by_file.setdefault(record.file, []).append(line(record) + "\n")
        for name, lines in by_file.items():
            (self.folder / f"{name}.jsonl").write_text("".join(lines))

    # --- the publisher -----------------------------------------------------------------

    async def start_publisher(self, *, seed: int, messages: int, seconds: float) -> None:
        """Start it; it ends with our end of its input."""
        self.publisher = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.publisher",
            f"--prefix={PREFIX}",
            f"--file={self.folder / 'publisher.jsonl'}",
            f"--seed={seed}",
            f"--messages={messages}",
            f"--seconds={seconds}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "CHAOS_AMQP_URL": self.servers.amqp_url(self.publishers_gate.port)},
        )

    async def listen(self) -> None:
        """Hear what the publisher says, until it ends."""
        assert self.publisher is not None
        assert self.publisher.stdout is not None
        async for said in self.publisher.stdout:
            await self._answers.put(said.decode().strip())
        await self.publisher.wait()

    async def _order(self, order: str, answer: str) -> None:
        assert self.publisher is not None
        assert self.publisher.stdin is not None
        if self.publisher.returncode is not None:
            return
        self.publisher.stdin.write(f"{order}\n".encode())
        async with asyncio.timeout(SECONDS_TO_BE_EMPTY):
            while (await self._answers.get()) != answer:
                pass

    # --- faults -------------------------------------------------------------------------

    async def suffer(self, plan: Sequence[Planned], began: float) -> None:
        """Do all that is planned, and return when all is mended."""
        at_once = asyncio.Semaphore(MOST_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await asyncio.sleep(max(0.0, began + fault.at - time.time()))
                await at_once.acquire()
                group.create_task(self._suffer(fault, at_once))

    async def _suffer(self, fault: Planned, at_once: asyncio.Semaphore) -> None:
        lock = self._locks.setdefault(fault.resource, asyncio.Lock())
        try:
            async with lock, asyncio.timeout(SECONDS_FOR_ONE):
                await self._do(fault)
                self.done[fault.kind] += 1
        except (NotDoneError, *FAILED) as error:
            self.not_done[fault.kind] += 1
            self._note(fault, "healed", error=f"{type(error).__name__}: {error}"[:200])
        finally:
            at_once.release()

    async def _do(self, fault: Planned) -> None:
        action = ACTIONS[fault.kind]
        has_struck = asyncio.Event()

        def strike(carrier: Carrier | None) -> bool:
            self._note(fault, "begun", armed=carrier is not None)
            has_struck.set()
            return action.strike(self, fault, carrier)

        if fault.waiting is not None:
            waiting = fault.waiting
            gates = self._gates_of(fault)
            rule = Rule(Trigger(waiting.event, waiting.nth, waiting.after, gates), strike)
            self.witness.rules.append(rule)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(has_struck.wait(), PATIENCE)
            if rule in self.witness.rules:
                self.witness.rules.remove(rule)
        if not has_struck.is_set():
            strike(None)
        await action.last(self, fault)
        self._note(fault, "healed")

    async def mend(self) -> None:
        """Take away all that may be left of faults."""
        self.witness.rules.clear()
        gates = [gate for place in self.places for gate in (place.amqp, place.postgres)]
        for gate in [self.publishers_gate, *gates]:
            for weather in [gate.weather, *(carrier.weather for carrier in gate.carriers.values())]:
                weather.clear()
            await gate.open()
        for place in self.places:
            place.signal(signal.SIGCONT)
        await self.servers.no_alarm()
        await self.servers.writable()

    def _gates_of(self, fault: Planned) -> frozenset[str]:
        """Where a fault of one place waits for its event."""
        if fault.target not in {"worker", "amqp", "postgres_wire"}:
            return frozenset()
        place = self.places[fault.place]
        return frozenset({place.amqp.name, place.postgres.name})

    def _note(self, fault: Planned, phase: str, **detail: object) -> None:
        if fault.resource.endswith(str(fault.place)):
            target = self.places[fault.place].process
        else:
            target = fault.target
        self.note(
            Fault(
                phase=phase,  # type: ignore[arg-type]
                number=fault.number,
                kind=fault.kind,
                target=target,
                detail=detail,
            )
        )

    async def delete_side_queue(self, *, pause: float) -> None:
        """Delete a queue that is empty and stays so meanwhile: all that was in it would be lost."""
        await self._order(f"hold {SIDE}", f"held {SIDE}")
        try:
            async with asyncio.timeout(SECONDS_TO_BE_EMPTY):
                while not await self._is_side_empty():
                    await asyncio.sleep(0.2)
            await asyncio.to_thread(self.servers.call, "DELETE", f"/api/queues/{VHOST}/{PREFIX}.q.{SIDE}")
            await asyncio.sleep(pause)
        except TimeoutError:
            raise NotDoneError("the queue did not become empty") from None
        finally:
            await self._order(f"release {SIDE}", f"released {SIDE}")
        while await self._side_depth() is None:
            await asyncio.sleep(0.5)
        # the next fault may kill the broker, and a queue as young as this would be lost for good
        await asyncio.to_thread(self.servers.rabbitmq.flush)

    async def _is_side_empty(self) -> bool:
        name = f"{PREFIX}.q.{SIDE}"
        held = [
            each.reader.count_unsettled(name)
            for place in self.places
            for each in place.amqp.carriers.values()
        ]
        if any(held):
            return False
        async with self.servers.database() as connection:
            unfinished = await connection.fetchval(
                """SELECT count(*) FROM broker_worker.tasks
                   WHERE queue = $1 AND state IN ('queued', 'running', 'retrying')""",
                SIDE,
            )
        if unfinished:
            return False
        return await self._side_depth() == 0

    async def _side_depth(self) -> int | None:
        """How many messages are in it; `None` where it is not there."""
        answer = await asyncio.to_thread(
            self.servers.rabbitmq.ctl, "list_queues", "-p", VHOST, "name", "messages", "--silent"
        )
        depths = dict(each.split() for each in answer.splitlines())
        depth = depths.get(f"{PREFIX}.q.{SIDE}")
        return int(depth) if depth is not None else None

    # --- what is looked at --------------------------------------------------------------

    async def sample(self, seconds: float) -> None:
        """Look at processes and queues, for ever."""
        while True:
            await asyncio.sleep(seconds)
            oldest = await self._oldest_transactions()
            for place in self.places:
                ports = {carrier.port for carrier in place.postgres.carriers.values()}
                place.sample(max((age for port, age in oldest.items() if port in ports), default=0.0))
            with contextlib.suppress(*FAILED):
                self.note_queues(await self.servers.queues())

    def note_queues(self, queues: dict[str, tuple[int, int, int]]) -> None:
        for name, (ready, unacked, consumers) in queues.items():
            self.note(Sample(amqp_queue=name, ready=ready, unacked=unacked, consumers=consumers))

    async def _oldest_transactions(self) -> dict[int, float]:
        """How long each session has been idle in a transaction, by the port that it comes from."""
        with contextlib.suppress(*FAILED):
            async with asyncio.timeout(5), self.servers.database() as connection:
                rows = await connection.fetch(
                    """SELECT client_port, extract(epoch FROM now() - state_change)::float8 AS age
                       FROM pg_stat_activity WHERE state = 'idle in transaction'"""
                )
                return {row["client_port"]: row["age"] for row in rows}
        return {}

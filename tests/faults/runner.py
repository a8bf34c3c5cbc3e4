"""A run from begin to end: warm up, break things, mend all, wait until it is quiet, judge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from broker_worker.local.network import free_ports
from tests.faults.amqp_wire import AmqpReader
from tests.faults.checker import check, report
from tests.faults.daemons import Place, write_logs
from tests.faults.handlers import FACTS, FOLDER
from tests.faults.history import dump
from tests.faults.inbox import declare, read_all
from tests.faults.postgres_wire import PostgresReader
from tests.faults.proxy import Gate
from tests.faults.records import About, Process, Recording, WorkerChange, dump_about, read
from tests.faults.schedule import Planned
from tests.faults.servers import FAILED, VHOST, Servers, running_servers
from tests.faults.verdict import Verdict
from tests.faults.witness import Witness
from tests.faults.workload import MAIN, REPLIES, RISKY, SIDE
from tests.faults.world import PREFIX, World

QUEUES = {MAIN: 40, SIDE: 10, RISKY: 2}
CANARY = "canary-6f1c"  # part of a password that no line may hold
SECONDS_BETWEEN_SAMPLES = 2.0
EQUAL_LOOKS = 3
SECONDS_BETWEEN_LOOKS = 3.0  # together more than the five that the HTTP API may be behind
SETTINGS = {
    "PREFIX": PREFIX,
    "HANDLERS": "tests.faults.handlers",
    "RETRY_DELAY": "1s",
    "RETRY_MAX_DELAY": "4s",
    "UNKNOWN_TASK_GRACE": "0s",
    "REPLY_TO": REPLIES,
    "ALLOW_INSECURE": "true",
    "LOG_FORMAT": "json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done."""

    seed: int
    messages: int
    faults: tuple[Planned, ...]
    seconds: float  # over which messages and faults are spread
    warm: float = 30.0
    daemons: int = 3
    mortal: int = 2  # of these; the others live as long as the run, to show what grows
    longest_drain: float = 900.0
    recovery: float = 10.0  # seconds from a heal to the first success
    fsync: bool = True


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it."""

    recording: Recording
    verdict: Verdict
    done: dict[str, int]
    not_done: dict[str, int]


async def run(plan: Plan, folder: Path) -> Ran:
    """Do all of it; the files of the run are in `folder` afterwards."""
    about = About(
        seed=plan.seed,
        prefix=PREFIX,
        handlers=FACTS,
        prefetch=sum(QUEUES.values()),
        secrets=[CANARY],
        leeway=0.002,
        recovery=plan.recovery,
    )
    async with (
        running_servers(fsync=plan.fsync, password=CANARY) as servers,
        a_world(plan, servers, folder) as world,
    ):
        about = replace(about, began_at=time.time())
        healed_at, is_quiet = await through_all(world, plan)
        about = replace(about, healed_at=healed_at, ended_at=time.time(), has_quiet_end=is_quiet)
        await collect(world)
    (folder / "about.json").write_text(dump_about(about))
    recording = Recording.load(folder)
    verdict = check(recording)
    (folder / "report.txt").write_text("\n".join(report(recording, verdict)) + "\n")
    return Ran(recording, verdict, dict(world.done), dict(world.not_done))


@contextlib.asynccontextmanager
async def a_world(plan: Plan, servers: Servers, folder: Path) -> AsyncIterator[World]:
    """Open gates, and know places and records; nothing of it stays."""
    witness = Witness(folder / "wire.jsonl")
    ports = iter(free_ports(3 * plan.daemons + 1))
    async with AsyncExitStack() as opened:
        opened.callback(witness.close)
        publishers = amqp_gate("publisher", servers, witness, next(ports), is_recorded=False)
        world = World(folder, servers, witness, [], publishers, plan.mortal)
        for number in range(1, plan.daemons + 1):
            place = a_place(world, number, (next(ports), next(ports), next(ports)))
            world.places.append(place)
            opened.callback(place.end)
        for gate in [publishers, *(gate for place in world.places for gate in (place.amqp, place.postgres))]:
            await gate.open()
            opened.push_async_callback(gate.close)
        yield world


def amqp_gate(name: str, servers: Servers, witness: Witness, port: int, *, is_recorded: bool = True) -> Gate:
    return Gate(name, lambda: servers.rabbitmq.port, witness, AmqpReader, port=port, is_recorded=is_recorded)


def a_place(world: World, number: int, ports: tuple[int, int, int]) -> Place:
    """Describe a daemon; one that is to live is given nothing that kills it."""
    name, servers = f"worker-{number}", world.servers
    amqp = amqp_gate(f"{name}-amqp", servers, world.witness, ports[0])
    postgres = Gate(
        f"{name}-postgres", lambda: servers.postgres.port, world.witness, PostgresReader, port=ports[1]
    )
    queues = {queue: slots for queue, slots in QUEUES.items() if queue != RISKY or number <= world.mortal}
    settings = SETTINGS | {
        "AMQP_URL": servers.amqp_url(amqp.port),
        "DATABASE_URL": servers.database_url(postgres.port),
        "HTTP_BIND": f"127.0.0.1:{ports[2]}",
        "QUEUES": ",".join(f"{queue}:{slots}" for queue, slots in queues.items()),
    }
    environment = {f"BROKER_WORKER_{key}": value for key, value in settings.items()}
    return Place(
        name, amqp, postgres, ports[2], environment | {FOLDER: str(world.folder)}, world.folder, world.note
    )


async def through_all(world: World, plan: Plan) -> tuple[float, bool]:
    """Go through the phases; when all was mended, and whether it became quiet."""
    async with asyncio.TaskGroup() as group:
        keeping = [group.create_task(place.run()) for place in world.places]
        for place in world.places:
            if not await place.ready():
                raise TimeoutError(f"{place.name} did not become ready")
        await asyncio.to_thread(declare, world.servers.call, VHOST, PREFIX)
        await asyncio.to_thread(world.servers.rabbitmq.flush)
        sampling = group.create_task(world.sample(SECONDS_BETWEEN_SAMPLES))
        telling = group.create_task(tell(world))
        await world.start_publisher(seed=plan.seed, messages=plan.messages, seconds=plan.warm + plan.seconds)
        publishing = group.create_task(world.listen())
        await asyncio.sleep(plan.warm)
        await world.suffer(plan.faults, time.time())
        await world.mend()
        healed_at = time.time()
        is_quiet = await becomes_quiet(world, publishing, plan.longest_drain)
        for watching in (sampling, telling):
            watching.cancel()
        await asyncio.gather(*(place.stop() for place in world.places))
        for each in keeping:
            each.cancel()
    return healed_at, is_quiet


async def becomes_quiet(world: World, publishing: asyncio.Task[None], seconds: float) -> bool:
    """Wait until all is published and nothing is on its way, three looks in a row."""
    equal = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.shield(publishing)
            while equal < EQUAL_LOOKS:
                equal = equal + 1 if await is_quiet_now(world) else 0
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    publishing.cancel()
    with contextlib.suppress(*FAILED):
        world.note_queues(await exact_queues(world.servers))
    return equal >= EQUAL_LOOKS


async def tell(world: World) -> None:
    """Say once a minute how far it is."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(60.0)
        minutes, done = (time.monotonic() - began) / 60, sum(world.done.values())
        sys.stdout.write(f"{minutes:3.0f} min: {done} faults done, {world.witness.seen} events seen\n")
        sys.stdout.flush()


async def is_quiet_now(world: World) -> bool:
    with contextlib.suppress(*FAILED):
        async with world.servers.database() as connection:
            left = await connection.fetchval(
                """SELECT (SELECT count(*) FROM broker_worker.tasks
                           WHERE state IN ('queued', 'running', 'retrying'))
                        + (SELECT count(*) FROM broker_worker.outbox)"""
            )
        if left:
            return False
        return not any(
            ready + unacked
            for name, (ready, unacked, _) in (await world.servers.queues()).items()
            if name.startswith(f"{PREFIX}.")
        )
    return False


async def exact_queues(servers: Servers) -> dict[str, tuple[int, int, int]]:
    """Ask the queues themselves: not often, it takes seconds of processor time."""
    columns = ("name", "messages_ready", "messages_unacknowledged", "consumers")
    answer = await asyncio.to_thread(
        servers.rabbitmq.ctl, "list_queues", "-p", VHOST, *columns, "--formatter", "json"
    )
    return {each[columns[0]]: tuple(each[column] for column in columns[1:]) for each in json.loads(answer)}


async def collect(world: World) -> None:
    """Write down what the servers know in the end."""
    async with world.servers.database() as connection:
        await dump(connection, world.folder)
    for record in await asyncio.to_thread(read_all, world.servers.amqp_url()):
        world.note(record)
    name_workers(world)
    world.write()
    write_logs(world.folder)
    world.witness.flush()


def name_workers(world: World) -> None:
    """Say of each process which row of `workers` was its own: by the process id, which names it there."""
    rows = read(WorkerChange, world.folder / f"{WorkerChange.file}.jsonl")
    worker_by_pid = {int(row.host.rpartition(":")[2]): row.worker for row in rows if row.op == "insert"}
    pid_by_process = {
        each.process: each.pid for each in world.records if isinstance(each, Process) and each.pid
    }
    for each in world.records:
        if isinstance(each, Process):
            each.worker = worker_by_pid.get(pid_by_process.get(each.process, 0), "")

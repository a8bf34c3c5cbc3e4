"""The broker forgets nothing before the commit that stands for it: both wires of a daemon, watched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until
from tests.support.raw_amqp import FLAG, raw_publisher, short
from tests.support.wires import Ack, Copy, Published, Wires, wires

pytestmark = pytest.mark.timeout(300)

MARK = "on-its-way-to-postgres"
COUNT = 200
EVERY = 20  # there is an unfinished task among so many
WAITING = frozenset({"queued", "retrying"})
RECORDED = """
    SELECT t.message_id AS task, t.name, t.state, t.epoch,
      EXISTS (SELECT FROM broker_worker.outbox o
              WHERE o.task_key = t.key AND o.kind = 'copy' AND o.epoch = t.epoch) AS owes_copy,
      EXISTS (SELECT FROM broker_worker.dead_letters d WHERE d.task_key = t.key) AS has_letter,
      EXISTS (SELECT FROM broker_worker.outbox o JOIN broker_worker.dead_letters d ON d.id = o.dead_letter
              WHERE d.task_key = t.key) AS owes_letter,
      EXISTS (SELECT FROM public.effects e WHERE e.task_id = t.message_id) AS has_effect
    FROM broker_worker.tasks t WHERE t.message_id = ANY($1)"""


async def missing(observer: asyncpg.Connection, ack: Ack, published: Published) -> list[str]:
    """What is not committed although the broker is about to forget it, in words; best nothing.

    What the broker keeps another delivery of is not lost with this one. For a message without an id
    stands the confirm of its copy.
    """
    tasks = {copy.task for copy in ack.forgotten} - ack.unsettled - {""}
    rows = {row["task"]: row for row in await observer.fetch(RECORDED, list(tasks))}
    lost = [task for task in tasks if task not in rows or not is_recorded(rows[task], published)]
    return [f"{task} is about to be acked, and this is committed: {rows.get(task)}" for task in lost]


def is_recorded(row: asyncpg.Record, published: Published) -> bool:
    """Whether a task no longer needs the delivery: it has ended, or what it waits for is there."""
    copy = Copy(row["task"], row["epoch"])
    is_published = any(one == copy for _, one in published)
    match row["state"]:
        case "succeeded":
            return row["name"] != "transactional" or bool(row["has_effect"])
        case "dead":
            return bool(row["has_letter"]) and (row["owes_letter"] or is_published)
        case state:
            return state in WAITING and (row["owes_copy"] or is_published)


@dataclass
class Watched:
    """A service whose daemon runs through the observer."""

    service: Service
    wires: Wires

    def publish(self, *named: tuple[str, str]) -> None:
        self.service.publish(*(message(name, id_, {"mark": MARK}) for name, id_ in named))

    def until_acked(self, tasks: set[str]) -> None:
        until(f"these are acked: {tasks}", lambda: tasks <= self.wires.acked())


@pytest.fixture
def watched(service: Service) -> Iterator[Watched]:
    service.settings = {"HANDLERS": "tests.support.recorded_handlers", "QUEUES": "default:800"}
    service.rows("CREATE TABLE public.effects (task_id text NOT NULL)")
    with wires(service.amqp_url, service.database_url, missing) as seen, service.running:
        service.start(AMQP_URL=seen.amqp_url, DATABASE_URL=seen.database_url)
        yield Watched(service, seen)


def among_unfinished(name: str) -> tuple[list[tuple[str, str]], set[str]]:
    """Tasks of one kind with some between them that don't end yet; and the ids of those that do."""
    named = [
        ("gated", f"gated-{i}") if i % EVERY == EVERY - 1 else (name, f"{name}-{i}") for i in range(COUNT)
    ]
    return named, {id_ for kind, id_ in named if kind == name}


@pytest.mark.parametrize("name", ["plain", "thread", "transactional", "retried", "given_up"])
def test_an_ack_waits_for_the_commit_however_long_that_takes(watched: Watched, name: str) -> None:
    watched.publish(("plain", "first"))
    watched.until_acked({"first"})
    named, ending = among_unfinished(name)
    watched.wires.hold(MARK)
    watched.publish(*named)
    until("a commit is held", lambda: watched.wires.held)

    # finished long ago: acked without a commit that is held, and behind all that was sent before
    watched.publish(*([("plain", "first")] * 3))
    until("a later ack has passed", lambda: watched.wires.count_acks("first") > 1)

    assert watched.wires.acked() == {"first"}
    watched.wires.release()
    watched.until_acked(ending)
    assert not {id_ for id_ in watched.wires.acked() if id_.startswith("gated")}
    watched.service.gate.touch()
    watched.until_acked({id_ for _, id_ in named})
    assert watched.wires.faults == []


async def publish_without_id(service: Service, count: int) -> None:
    """Publish by hand: client libraries add an id."""
    async with raw_publisher(service.amqp_url) as publisher:
        for _ in range(count):
            await publisher.publish(
                f"{service.prefix}.tasks",
                b"default",
                flags=FLAG["message_type"],
                properties=short(b"plain"),
                body=json.dumps({"mark": MARK}).encode(),
            )


def test_the_ack_of_a_message_without_an_id_waits_for_the_confirm_of_its_copy(watched: Watched) -> None:
    watched.publish(("plain", "first"))
    watched.until_acked({"first"})
    watched.wires.hold_confirms()
    asyncio.run(publish_without_id(watched.service, 20))
    until("a confirm is held", lambda: watched.wires.held)

    watched.publish(("plain", "first"))
    until("a later ack has passed", lambda: watched.wires.count_acks("first") > 1)

    assert "" not in watched.wires.acked()
    watched.wires.release()
    watched.service.until_states(succeeded=21)
    until("nothing is unsettled", lambda: not watched.wires.keeps())
    assert watched.wires.count_acks("") == 20
    assert watched.wires.faults == []


def test_of_whatever_is_acked_under_load_the_end_is_committed(watched: Watched) -> None:
    kinds = ["plain", "thread", "transactional", "retried", "given_up"]
    named = [
        ("gated", f"gated-{i}") if i % EVERY == EVERY - 1 else (kinds[i % 5], f"t-{i}") for i in range(600)
    ]
    once, twice, later = named[:200], named[200:400], named[400:]

    watched.publish(*once, *(one for one in twice for _ in range(2)), *later, *once)
    watched.service.gate.touch()

    watched.service.until_states(seconds=150, succeeded=510, dead=90)
    until("nothing is unsettled", lambda: not watched.wires.keeps())
    assert watched.wires.faults == []
    assert watched.wires.acked() == {id_ for _, id_ in named}
    assert any(ack.is_multiple for ack in watched.wires.acks)

"""What a handler sends leaves with its success, the same in memory and in Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.errors import StoreUnavailableError
from broker_worker.message import Message, TaskId, decode
from broker_worker.outcome import Cancelled, Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.outgoing import EVENT_ID, LONGEST_RUNG, Kind, Outgoing
from broker_worker.sending import SentEvent, SentTask
from broker_worker.store.sending import PART_ROWS
from broker_worker.task import CancelledBefore, Claimed, Conflicting, Duplicate, TaskState
from broker_worker.testing.clock import BEGINNING
from tests.support.worlds import MAX_ATTEMPTS, PostgresWorld, Worker, World, said

SENDER = Message(
    TaskId("email", "email.send", "m-1"), b"{}", headers={"tenant-id": "t"}, correlation_id="c-1"
)
CHILD = TaskId("billing", "bill", "b-1")
FAILURE = Failure("ValueError", "no")
PROMPTNESS = timedelta(minutes=2)
MOMENT = timedelta(seconds=1)


def task(id_: str = "b-1", body: bytes = b'{"x": 1}', delay: timedelta = timedelta(0)) -> SentTask:
    message = Message(
        CHILD._replace(id=id_), body, content_type="application/json", headers={"tenant-id": "t"}
    )
    return SentTask(message, delay)


EVENT = SentEvent("orders", "order.billed", b'{"order": 1}')


def numbered(number: int) -> Message:
    return replace(SENDER, task=SENDER.task._replace(id=f"m-{number}"))


def received(outgoing: Outgoing) -> Message:
    """What a worker reads when the copy arrives."""
    properties = outgoing.properties
    message = decode(
        properties, outgoing.body, queue=outgoing.routing_key, now=BEGINNING, max_body_bytes=1000
    )
    assert isinstance(message, Message)
    return message


async def test_what_was_sent_is_queued_with_the_success_and_published_at_once(world: World) -> None:
    worker = await world.join()

    await worker.finish(SENDER, Succeeded("1", (task(),)))

    row = await world.row(CHILD)
    assert (row.state, row.attempt, row.epoch, row.has_body) == (TaskState.QUEUED, 0, 1, True)
    assert (row.digest, row.max_attempts) == (task().message.digest(), MAX_ATTEMPTS)
    assert said(await world.stored(CHILD)) == said(task().message)
    assert (await world.row(SENDER.task)).state is TaskState.SUCCEEDED
    (owed,) = worker.owed
    assert received(owed.outgoing) == replace(task().message, epoch=1)


async def test_what_was_sent_runs_when_its_copy_arrives(world: World) -> None:
    worker = await world.join()
    await worker.finish(SENDER, Succeeded("1", (task(),)))
    (owed,) = worker.owed

    met = await worker.arrive(received(owed.outgoing))
    again = await worker.arrive(received(owed.outgoing))

    assert met.decision == Claimed(attempt=1, epoch=2)
    assert isinstance(again.decision, Duplicate)


async def test_a_chain_of_tasks_goes_on_until_its_end(world: World) -> None:
    worker = await world.join()
    await worker.finish(SENDER, Succeeded(None, (task("b-1"),)))

    await worker.finish(received(worker.owed[-1].outgoing), Succeeded(None, (task("b-2"),)))
    await worker.finish(received(worker.owed[-1].outgoing), Succeeded("3"))

    states = [(await world.row(one)).state for one in (SENDER.task, CHILD, CHILD._replace(id="b-2"))]
    assert states == [TaskState.SUCCEEDED] * 3
    assert await world.result(CHILD._replace(id="b-2")) == "3"
    assert len(worker.owed) == 2


@pytest.mark.parametrize(
    "outcome",
    [
        Postponed(timedelta(seconds=1), FAILURE),
        Dead(Reason.GAVE_UP, FAILURE),
        Cancelled(),
        Released(),
    ],
    ids=["postponed", "dead", "cancelled", "released"],
)
async def test_an_attempt_that_does_not_succeed_sends_nothing(world: World, outcome: Outcome) -> None:
    worker = await world.join()

    await worker.finish(SENDER, outcome)

    assert await world.find(CHILD) is None
    assert all(owed.outgoing.kind is not Kind.EVENT for owed in worker.owed)


async def test_a_claim_that_is_lost_sends_nothing(world: World) -> None:
    worker = await world.join()
    claim = await worker.claim(SENDER)
    await world.edit(SENDER.task, epoch=7)

    recorded = await worker.record(claim, Succeeded("1", (task(), EVENT)))

    assert recorded is None
    assert await world.find(CHILD) is None
    assert (worker.owed, await world.owed_epochs()) == ([], [])


async def test_a_success_that_is_recorded_twice_sends_once(world: World) -> None:
    worker = await world.join()
    claim = await worker.claim(SENDER)
    success = Succeeded("1", (task(), EVENT))

    worker.lose_reply()
    with pytest.raises(StoreUnavailableError):
        await worker.tasks.record(claim, success)
    await worker.record(claim, success)

    assert await world.owed_epochs() == [1, 1]
    assert (await world.row(CHILD)).epoch == 1


async def test_a_delay_is_the_copys_and_the_row_is_there_at_once(world: World) -> None:
    worker, other = await world.join(), await world.join()

    await worker.finish(SENDER, Succeeded(None, (task(delay=timedelta(minutes=10)),)))
    await world.pass_time(timedelta(minutes=4))
    (found,) = await other.outbox.take(9)

    assert (await world.row(CHILD)).state is TaskState.QUEUED
    assert worker.owed[0].outgoing.delay == timedelta(minutes=10)
    assert timedelta(minutes=5) < found.outgoing.delay <= timedelta(minutes=6)


async def test_a_delay_beyond_the_last_rung_waits_in_the_database(world: World) -> None:
    worker = await world.join()
    delay = LONGEST_RUNG + MOMENT

    await worker.finish(SENDER, Succeeded(None, (task(delay=delay),)))
    early = await worker.outbox.take(9)
    await world.pass_time(delay)
    (due,) = await worker.outbox.take(9)

    assert (worker.owed, early) == ([], [])
    assert due.outgoing.body == task().message.body


async def test_what_a_worker_sent_before_it_died_is_published_by_another(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(SENDER, Succeeded(None, (task(), EVENT)))
    await world.kill(worker)

    found = await other.outbox.take(9)

    assert sorted(found, key=lambda owed: owed.id) == sorted(worker.owed, key=lambda owed: owed.id)


async def test_a_task_that_was_cancelled_while_its_copy_was_owed_is_not_sent(world: World) -> None:
    worker = await world.join()
    await worker.finish(SENDER, Succeeded(None, (task(),)))
    await world.edit(CHILD, is_cancel_requested=True)

    met = await worker.arrive(received(worker.owed[0].outgoing))
    await world.pass_time(PROMPTNESS + MOMENT)

    assert isinstance(met.decision, CancelledBefore)
    assert await worker.outbox.take(9) == []


# --- identities that are known ---------------------------------------------------


async def test_a_task_that_is_known_is_not_sent_again(world: World) -> None:
    worker = await world.join()
    running = await worker.claim(task().message)
    before = await world.row(CHILD)

    await worker.finish(SENDER, Succeeded(None, (task(),)))

    assert await world.row(CHILD) == before == running.row
    assert (worker.owed, await world.letters()) == ([], [])


async def test_two_sends_of_one_task_are_one_task(world: World) -> None:
    worker = await world.join()

    await worker.finish(SENDER, Succeeded(None, (task(), task())))
    await worker.finish(numbered(2), Succeeded(None, (task(),)))

    assert [owed.outgoing.kind for owed in worker.owed] == [Kind.COPY]
    assert await world.letters() == []


async def test_a_task_that_sends_itself_sends_nothing(world: World) -> None:
    worker = await world.join()

    await worker.finish(SENDER, Succeeded("1", (SentTask(SENDER),)))

    assert (await world.row(SENDER.task)).state is TaskState.SUCCEEDED
    assert (worker.owed, await world.letters()) == ([], [])


async def test_a_publishers_message_of_a_task_that_was_sent_is_a_duplicate(world: World) -> None:
    worker = await world.join()
    await worker.finish(SENDER, Succeeded(None, (task(),)))

    met = await worker.arrive(task().message)

    assert isinstance(met.decision, Duplicate)
    assert (await world.row(CHILD)).state is TaskState.QUEUED


@pytest.mark.parametrize("is_at_once", [False, True], ids=["an earlier task's", "its own"])
async def test_an_identity_that_means_another_task_is_a_dead_letter(world: World, is_at_once: bool) -> None:
    worker = await world.join()
    other = task(body=b'{"x": 2}')
    if is_at_once:
        await worker.finish(SENDER, Succeeded("1", (task(), other, other)))
    else:
        await worker.finish(numbered(2), Succeeded("1", (task(),)))
        await worker.finish(SENDER, Succeeded("1", (other,)))

    (letter,) = await world.letters()
    assert (letter.reason, letter.body, letter.task_key) == ("conflict", b'{"x": 2}', None)
    assert said(await world.stored(CHILD)) == said(task().message)
    assert (await world.row(SENDER.task)).state is TaskState.SUCCEEDED
    assert sorted(owed.outgoing.kind for owed in worker.owed) == [Kind.COPY, Kind.DEAD_LETTER]


async def test_the_conflict_of_a_sent_task_is_the_one_of_an_arrival(world: World) -> None:
    worker = await world.join()
    other = task(body=b'{"x": 2}')
    await worker.finish(SENDER, Succeeded(None, (task(), other)))

    met = await worker.arrive(other.message)

    assert isinstance(met.decision, Conflicting)
    assert len(await world.letters()) == 1


# --- events ----------------------------------------------------------------------


async def test_an_event_is_owed_to_its_exchange_as_it_stands(world: World) -> None:
    worker = await world.join()

    await worker.finish(SENDER, Succeeded(None, (EVENT, EVENT)))

    (first, second) = (owed.outgoing for owed in worker.owed)
    assert (first.kind, first.exchange, first.routing_key) == (Kind.EVENT, "orders", "order.billed")
    assert (first.body, first.properties.content_type) == (EVENT.body, "application/json")
    assert (first.properties.correlation_id, first.properties.headers["tenant-id"]) == ("c-1", "t")
    assert first.properties.headers[EVENT_ID] != second.properties.headers[EVENT_ID]


async def test_an_event_that_is_published_again_is_the_same_event(world: World) -> None:
    worker, other = await world.join(), await world.join()
    await worker.finish(SENDER, Succeeded(None, (SentEvent("", "a.queue", b"1"), EVENT)))
    await world.pass_time(PROMPTNESS + MOMENT)

    found = await other.outbox.take(9)

    assert sorted(found, key=lambda owed: owed.id) == worker.owed


async def test_an_event_that_cannot_be_published_is_kept_for_ever(world: World) -> None:
    worker = await world.join()
    await worker.finish(SENDER, Succeeded(None, (EVENT,)))
    ids = [owed.id for owed in worker.owed]

    for _ in range(40):
        await worker.outbox.put_back(ids)
    await world.pass_time(timedelta(minutes=5) + MOMENT)

    assert [owed.id for owed in await worker.outbox.take(9)] == ids


# --- many ------------------------------------------------------------------------


async def test_every_one_of_very_many_is_sent(world: World) -> None:
    worker, other = await world.join(), await world.join()
    sent = tuple(task(f"b-{number}") for number in range(1200))

    await worker.finish(SENDER, Succeeded(None, sent + (EVENT,) * 1200))

    await world.pass_time(PROMPTNESS + MOMENT)
    taken = [owed.outgoing for owed in await other.outbox.take(9999)]
    tasks = {received(outgoing).task.id for outgoing in taken if outgoing.kind is Kind.COPY}
    events = {outgoing.properties.headers[EVENT_ID] for outgoing in taken if outgoing.kind is Kind.EVENT}
    assert tasks == {one.message.task.id for one in sent}
    assert (len(events), len(taken)) == (1200, 2400)


async def test_runs_that_send_the_same_tasks_at_once_send_each_once(world: World) -> None:
    workers = [await world.join() for _ in range(3)]
    sent = [task(f"b-{number}") for number in range(50)]

    async def finish(worker: Worker, number: int) -> None:
        order = sent if number % 2 else sent[::-1]
        await worker.finish(numbered(number), Succeeded(None, tuple(order)))

    async with asyncio.timeout(60):
        await asyncio.gather(*(finish(workers[number % 3], number) for number in range(30)))

    copies = [received(owed.outgoing).task.id for worker in workers for owed in worker.owed]
    assert sorted(copies) == sorted(one.message.task.id for one in sent)
    assert await world.letters() == []


async def test_more_than_a_worker_can_publish_at_once_is_left_to_all(postgres: PostgresWorld) -> None:
    worker, other = await postgres.join(), await postgres.join()
    sent = tuple(task(f"b-{number}") for number in range(1200))

    await worker.finish(SENDER, Succeeded(None, sent))

    found = await other.outbox.take(9999)
    ids = {owed.id for owed in [*worker.owed, *found]}
    assert (len(worker.owed), len(found), len(ids)) == (PART_ROWS, 1200 - PART_ROWS, 1200)


# --- beside other transactions ---------------------------------------------------


async def insert(connection: AsyncConnection, *ids: str) -> None:
    """Make rows of another digest, as another worker's transaction would."""
    rows = [f"('{CHILD.queue}', '{CHILD.name}', '{id_}', 'other', 'queued', 3)" for id_ in ids]
    await connection.exec_driver_sql(
        "INSERT INTO broker_worker.tasks (queue, name, message_id, digest, state, max_attempts) "
        f"VALUES {', '.join(rows)}"
    )


async def somebody_waits(connection: AsyncConnection) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(20):
        while not (await connection.execute(text(waiting))).first():
            await asyncio.sleep(0.01)


async def test_a_task_that_is_changed_by_another_transaction_keeps_no_sender_waiting(
    postgres: PostgresWorld,
) -> None:
    worker = await postgres.join()
    await worker.claim(task().message)

    async with postgres.admin.transaction() as connection:
        await connection.exec_driver_sql("UPDATE broker_worker.tasks SET state = 'succeeded'")
        async with asyncio.timeout(5):
            recorded = await worker.record(await worker.claim(numbered(2)), Succeeded(None, (task(),)))

    assert recorded is not None


async def test_an_identity_that_another_takes_at_the_same_time_is_a_dead_letter(
    postgres: PostgresWorld,
) -> None:
    worker = await postgres.join()
    claim = await worker.claim(SENDER)

    async with asyncio.TaskGroup() as group, postgres.admin.transaction() as connection:
        await insert(connection, CHILD.id)
        recording = group.create_task(worker.tasks.record(claim, Succeeded(None, (task(),))))
        await somebody_waits(connection)

    assert recording.result() is not None
    assert [letter.reason for letter in await postgres.letters()] == ["conflict"]
    assert await postgres.owed_epochs() == [0]


async def test_identities_are_taken_in_one_order_by_all(postgres: PostgresWorld) -> None:
    worker = await postgres.join()
    claim = await worker.claim(SENDER)
    ids = [f"b-{number:04}" for number in range(PART_ROWS + 100)]
    sent = tuple(task(id_) for id_ in reversed(ids))

    async with asyncio.TaskGroup() as group, postgres.admin.transaction() as connection:
        await insert(connection, ids[0])
        recording = group.create_task(worker.tasks.record(claim, Succeeded(None, sent)))
        await somebody_waits(connection)
        await connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
        # the other waits before the first, for two seconds at most, and holds none of these
        await insert(connection, *ids[1:])

    assert recording.result() is not None
    assert len(await postgres.letters()) == len(ids)

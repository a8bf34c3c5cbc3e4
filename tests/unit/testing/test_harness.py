"""The harness: what a user's test can do with it, and what it says when that can't be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from broker_worker import Context, GiveUp, Registry, Retry, SyncContext
from broker_worker.errors import BrokerWorkerError, ConfigurationError, PublishError
from broker_worker.sending import PayloadError, SentTask
from broker_worker.task import TaskState
from broker_worker.testing import (
    Harness,
    HarnessError,
    RecordingHands,
    in_virtual_time,
    make_context,
    make_sync_context,
)
from broker_worker.testing.memory import MemoryStore

registry = Registry()


class Client:
    """A resource."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting


@registry.resource
async def client() -> AsyncIterator[Client]:
    yield Client("hello")


@registry.task("greet")
async def greet(name: str, client: Client) -> str:
    return f"{client.greeting} {name}"


@registry.task("flaky", retry_delay=1, retry_jitter=0)
async def flaky(context: Context) -> int:
    if context.attempt < 4:
        raise ConnectionError("away")
    return context.attempt


@registry.task("patient", max_attempts=30, retry_delay=3600)
async def patient(context: Context) -> None:
    if context.attempt < 30:
        raise ConnectionError("away")


@registry.task("hopeless", max_attempts=2)
async def hopeless() -> None:
    raise RuntimeError("no way")


@registry.task("gives_up")
async def gives_up() -> None:
    raise GiveUp("no such customer")


@registry.task("rests")
async def rests(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


@registry.task("works_in_a_thread")
def works_in_a_thread(context: SyncContext) -> int:
    context.progress(0.5, "half")
    context.checkpoint({"row": 7})
    return 2 * int(context.saved_as(int) or 1)


@registry.task("sends")
async def sends(context: Context) -> None:
    await context.send(greet, {"name": "ada"}, id="sent", delay=60)
    await context.send_event({"order": 7}, exchange="shop", routing_key="order.booked")


@registry.task("asks_again")
async def asks_again() -> None:
    raise Retry(delay=timedelta(hours=20))


@in_virtual_time
async def test_a_task_runs_when_the_harness_is_drained_and_not_before() -> None:
    async with Harness(registry) as harness:
        id_ = await harness.publish(greet, {"name": "ada"})
        assert harness.tasks() == []

        await harness.drain()

        view = harness.task(id_)
        assert (view.state, view.result, view.attempt) == (TaskState.SUCCEEDED, "hello ada", 1)


@in_virtual_time
async def test_retries_are_shown_with_their_waits() -> None:
    async with Harness(registry) as harness:
        id_ = await harness.publish(flaky)
        began = harness.now

        await harness.drain()

        view = harness.task(id_)
        assert view.result == 4
        assert view.retries == [timedelta(seconds=seconds) for seconds in (1, 2, 4)]
        assert [each.number for each in view.attempts] == [1, 2, 3, 4]
        assert view.finished_at == harness.now == began + timedelta(seconds=7)


@in_virtual_time
async def test_the_waits_of_a_policy_with_jitter_are_the_same_in_every_run() -> None:
    seen = []
    for _ in range(2):
        async with Harness(registry) as harness:
            id_ = await harness.publish(hopeless)
            await harness.drain()
            seen.append(harness.task(id_).retries)

    assert seen[0] == seen[1] != []


@in_virtual_time
async def test_a_day_of_backoff_takes_no_time_worth_mentioning() -> None:
    began = time.monotonic()

    async with Harness(registry, queues={"default": 1}, retry_max_delay="4h") as harness:
        start = harness.now
        await harness.publish(patient, id="t-1")
        await harness.drain()
        passed = harness.now - start
        harness.assert_succeeded("t-1")

    assert passed > timedelta(days=1)
    assert passed.total_seconds() / (time.monotonic() - began) > 10_000


@in_virtual_time
async def test_what_is_longer_than_the_last_delay_queue_waits_for_exactly_its_time() -> None:
    async with Harness(registry, max_attempts=2) as harness:
        id_ = await harness.publish(asks_again)
        began = harness.now

        await harness.drain()

        first, second = harness.task(id_).attempts
        assert second.started_at - first.started_at - timedelta(hours=20) < timedelta(seconds=2)
        assert first.started_at == began


@in_virtual_time
async def test_a_failure_is_told_with_its_place() -> None:
    async with Harness(registry) as harness:
        id_ = await harness.publish(hopeless)
        await harness.drain()

        view = harness.task(id_)
        assert (view.state, view.reason, view.error_type) == ("dead", "attempts_exhausted", "RuntimeError")
        assert isinstance(view.error, RuntimeError)
        assert "in hopeless" in (view.traceback or "")
        with pytest.raises(AssertionError, match=r"(?s)is dead, attempts_exhausted.*in hopeless"):
            harness.assert_succeeded(id_)


@in_virtual_time
async def test_a_dead_letter_has_its_reason_and_payload_and_can_be_replayed() -> None:
    async with Harness(registry) as harness:
        id_ = await harness.publish(gives_up, {"customer": 7})
        await harness.drain()
        (letter,) = harness.dead_letters
        assert (letter.task_id, letter.reason, letter.payload) == (id_, "gave_up", {"customer": 7})

        await harness.replay(id_)

        assert harness.dead_letters == []
        await harness.drain()
        assert [each.reason for each in harness.dead_letters] == ["gave_up"]
        assert len(harness.task(id_).attempts) == 2


@in_virtual_time
async def test_time_passes_by_as_much_as_the_test_says() -> None:
    async with Harness(registry) as harness:
        await harness.publish(rests, {"seconds": 90}, id="t-1", delay=timedelta(minutes=10))
        began = harness.now

        await harness.advance(minutes=11)

        assert harness.now == began + timedelta(minutes=11)
        assert harness.task("t-1").state is TaskState.RUNNING
        await harness.advance(seconds=30)
        assert harness.task("t-1").state is TaskState.SUCCEEDED


@in_virtual_time
async def test_a_running_task_can_be_cancelled_and_a_waiting_one_too() -> None:
    async with Harness(registry) as harness:
        await harness.publish(rests, {"seconds": 300}, id="running")
        await harness.publish(rests, {"seconds": 300}, id="waiting", delay=60)
        await harness.advance(seconds=1)

        await harness.cancel("running")
        await harness.cancel("waiting")
        await harness.drain()

        assert [view.state for view in harness.tasks()] == ["cancelled", "cancelled"]
        assert [len(view.attempts) for view in harness.tasks()] == [1, 0]
        with pytest.raises(HarnessError, match="is cancelled already"):
            await harness.cancel("running")


@in_virtual_time
async def test_the_same_id_again_is_no_second_task() -> None:
    async with Harness(registry) as harness:
        await harness.publish(rests, {"seconds": 1}, id="t-1", times=3)

        await harness.drain()

        assert len(harness.task("t-1").attempts) == 1


@in_virtual_time
async def test_what_a_handler_sends_is_run_and_events_are_shown() -> None:
    async with Harness(registry) as harness:
        await harness.publish(sends)

        await harness.drain()

        assert harness.task("sent").result == "hello ada"
        (event,) = harness.events
        assert (event.exchange, event.routing_key, event.payload) == ("shop", "order.booked", {"order": 7})


@in_virtual_time
async def test_progress_and_checkpoint_of_a_thread_are_shown() -> None:
    async with Harness(registry) as harness:
        await harness.publish(works_in_a_thread, id="t-1")

        await harness.drain()

        view = harness.task("t-1")
        assert (view.progress, view.progress_note) == (0.5, "half")
        assert view.state is TaskState.SUCCEEDED


@in_virtual_time
async def test_a_reply_is_shown_where_the_settings_allow_it() -> None:
    async with Harness(registry, reply_to="answers.*") as harness:
        await harness.publish(greet, {"name": "ada"}, id="t-1", reply_to="answers.1", correlation_id="c-1")

        await harness.drain()

        (reply,) = harness.replies
        assert (reply.routing_key, reply.correlation_id) == ("answers.1", "c-1")
        assert reply.payload["result"] == "hello ada"


@in_virtual_time
async def test_a_resource_is_replaced_by_a_fake_and_not_opened() -> None:
    async with Harness(registry) as harness:
        harness.override(Client, Client("bye"))
        id_ = await harness.publish(greet, {"name": "ada"})

        await harness.drain()

        assert harness.task(id_).result == "bye ada"
        with pytest.raises(HarnessError, match="open already"):
            harness.override(Client, Client("late"))


@in_virtual_time
async def test_a_fake_for_what_is_no_resource_is_refused() -> None:
    async with Harness(registry) as harness:
        with pytest.raises(HarnessError, match="no resource of type str"):
            harness.override(str, "fake")


@in_virtual_time
async def test_a_wrong_payload_is_refused_with_a_handler_and_sent_with_a_name() -> None:
    async with Harness(registry, unknown_task_grace=timedelta(0)) as harness:
        with pytest.raises(PayloadError, match="greet"):
            await harness.publish(greet, {"nobody": 1})

        id_ = await harness.publish("greet", {"nobody": 1})
        await harness.drain()

        assert harness.task(id_).reason == "invalid_payload"


@in_virtual_time
async def test_a_function_that_is_no_task_and_a_queue_that_is_not_there_are_refused() -> None:
    async with Harness(registry) as harness:
        with pytest.raises(ConfigurationError, match="make_context"):
            await harness.publish(make_context)
        with pytest.raises(PublishError, match="other"):
            await harness.publish("greet", queue="other")


@in_virtual_time
async def test_a_drain_that_takes_too_long_says_what_is_left() -> None:
    async with Harness(registry) as harness:
        await harness.publish(rests, {"seconds": 1}, id="far", delay=timedelta(days=40))

        with pytest.raises(HarnessError, match=r"(?s)30 days.*rests far: queued.*due at 2030-02-10"):
            await harness.drain()


@in_virtual_time
async def test_a_thread_that_takes_too_long_ends_the_drain_in_real_time() -> None:
    blocked = Registry()
    ends = asyncio.Event()

    @blocked.task("blocks")
    def blocks(context: SyncContext) -> None:
        while not ends.is_set():
            time.sleep(0.01)

    async with Harness(blocked) as harness:
        await harness.publish(blocks, id="t-1")

        with pytest.raises(HarnessError, match=r"(?s)2 s of real time.*blocks t-1: running"):
            await harness.drain(longest_wait=2)
        ends.set()


@in_virtual_time
async def test_an_open_socket_keeps_time_real_while_a_handler_may_wait_for_it() -> None:
    talking = Registry()

    @talking.task("talks", timeout=30, max_attempts=2)
    async def talks(context: Context) -> bytes:
        server = await asyncio.start_server(_answer_late, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            answer = await reader.read()
            writer.close()
        if context.attempt == 1:
            raise ConnectionError("again, in an hour")
        return answer

    async with Harness(talking, retry_delay="1h", retry_max_delay="1h") as harness:
        id_ = await harness.publish(talks)
        await harness.drain()

        assert harness.task(id_).result == "late"


async def _answer_late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.to_thread(time.sleep, 0.05)
    writer.write(b"late")
    writer.close()


class Session:
    """A session of no database."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    async def commit(self) -> None:
        self._log.append("commit")

    async def rollback(self) -> None:
        self._log.append("rollback")

    async def close(self) -> None:
        self._log.append("close")


def transactional() -> Registry:
    from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415 - as only its users have it

    booking = Registry()

    @booking.task("book", retry_delay=1)
    async def book(context: Context, session: AsyncSession) -> str:
        if context.attempt == 1:
            raise ConnectionError("once")
        if context.attempt == 2:
            await session.commit()
        return "booked"

    book.__annotations__["session"] = AsyncSession
    return booking


@in_virtual_time
async def test_a_session_is_committed_with_a_success_and_rolled_back_with_an_error() -> None:
    log: list[str] = []
    async with Harness(transactional(), session_factory=lambda: Session(log)) as harness:
        id_ = await harness.publish("book")
        await harness.drain()

        view = harness.task(id_)
        assert (view.state, view.result, view.attempt) == ("succeeded", "booked", 3)
        assert isinstance(view.attempts[1].failure and view.attempts[1].failure.error, BrokerWorkerError)
        assert log == ["rollback", "close", "rollback", "close", "commit", "close"]


@in_virtual_time
async def test_a_transactional_handler_without_sessions_is_refused_when_it_is_published() -> None:
    async with Harness(transactional()) as harness:
        with pytest.raises(HarnessError, match="session_factory"):
            await harness.publish("book")


@in_virtual_time
async def test_a_fault_of_the_worker_itself_is_raised_by_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(MemoryStore, "arrive", fail)
    async with Harness(registry) as harness:
        await harness.publish(rests, {"seconds": 1})

        with pytest.raises(HarnessError, match="RuntimeError: a bug"):
            await harness.drain()


@in_virtual_time
async def test_a_transactional_handler_that_another_one_sends_is_told_by_drain() -> None:
    broken = Registry()

    @broken.task("sends_one")
    async def sends_one(context: Context) -> None:
        await context.send("book", {})

    broken.include(transactional())

    async with Harness(broken) as harness:
        await harness.publish(sends_one)

        with pytest.raises(HarnessError, match="session_factory"):
            await harness.drain()


@in_virtual_time
async def test_a_handler_runs_in_a_real_child_process() -> None:
    from tests.support import stage_handlers  # noqa: PLC0415 - a module that a child can import

    async with Harness(stage_handlers.registry) as harness:
        id_ = await harness.publish("stage.in_a_child", {"number": 21})
        await harness.drain()
        harness.assert_succeeded(id_)
        assert harness.task(id_).result == 42


def test_a_harness_on_a_common_event_loop_says_what_it_needs() -> None:
    async def enter() -> None:
        async with Harness(registry):
            pass

    with pytest.raises(HarnessError, match="virtual time"):
        asyncio.run(enter())


def test_a_setting_that_is_none_is_named() -> None:
    with pytest.raises(HarnessError, match="max_tries"):
        Harness(registry, max_tries=3)


@in_virtual_time
async def test_an_unknown_id_is_told_as_such() -> None:
    async with Harness(registry) as harness:
        with pytest.raises(HarnessError, match="no worker has received a task 't-9'"):
            harness.task("t-9")


async def test_a_context_without_a_worker_keeps_what_the_handler_does() -> None:
    hands = RecordingHands(registry)
    await sends(make_context(hands))

    (sent,) = hands.sent
    assert isinstance(sent, SentTask)
    assert (sent.message.task.name, sent.message.task.id) == ("greet", "sent")
    assert [event.routing_key for event in hands.events] == ["order.booked"]


def test_a_context_for_a_plain_handler_has_the_facts_that_the_test_says() -> None:
    hands = RecordingHands()

    result = works_in_a_thread(make_sync_context(hands, saved=21, attempt=2))

    assert result == 42
    assert hands.progress == [(0.5, "half")]
    assert hands.checkpoints == [{"row": 7}]


@in_virtual_time
async def test_a_content_type_with_parameters_finds_its_decoder_as_in_the_worker() -> None:
    registry = Registry()
    registry.decoder("text/csv")(lambda body: {"cells": body.decode().split(",")})

    @registry.task("sheet.read")
    async def read(cells: list[str]) -> int:
        return len(cells)

    async with Harness(registry) as harness:
        task = await harness.publish(read, b"a,b,c", content_type="text/csv; charset=utf-8")
        await harness.drain()

        assert harness.task(task).result == 3

"""Tests of handlers: calls without a worker, and the harness."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from broker_worker import GiveUp, Registry, Retry
from broker_worker.client import TaskState
from broker_worker.testing import (
    Harness,
    LetterView,
    RecordingHands,
    TaskView,
    in_virtual_time,
    make_context,
    make_sync_context,
)

from .handlers import (
    Address,
    CheckPrime,
    Invoice,
    Mailbox,
    Page,
    Postman,
    SendMail,
    charge,
    check,
    factor,
    fetch,
    registry,
    report,
    unpack,
    weigh,
)


@pytest.fixture
def broker_worker_registry() -> Registry:
    return registry


@pytest.fixture
def broker_worker_options() -> Mapping[str, object]:
    return {"queues": ["default", "mail"]}


class FakeMailbox(Mailbox):
    async def send(self, to: str) -> bool:
        return False


async def test_handlers_are_what_they_were() -> None:
    url: str = await fetch("https://example.org", make_context())
    depth: int = unpack("/tmp", make_sync_context(attempt=2, saved={"row": 5}), depth=3)
    is_even: bool = factor(number=4)
    is_sent: bool = await SendMail(FakeMailbox()).run(Address("ada@example.org"), make_context())
    is_prime: bool = CheckPrime().run(2)
    weight: float = weigh({"weight": 2.5})
    is_right: bool = await check(url, Page(url), Postman(FakeMailbox()))

    assert (depth, is_even, is_sent, is_prime, weight, is_right) == (3, True, False, True, 2.5, False)


async def test_a_handler_sends_and_saves() -> None:
    hands = RecordingHands(registry)

    written = await report(3, make_context(hands, name="report.write", queue="default"))

    assert written == 3
    assert [sent.message.task.name for sent in hands.sent] == [
        "invoice.charge",
        "mail.send",
        "page.fetch",
        "table.vacuum",
    ]
    assert hands.checkpoints[-1] == {"row": 2}
    assert hands.events[0].exchange == "shop"


async def test_a_failure_says_when() -> None:
    with pytest.raises(Retry) as caught:
        await charge(Invoice(number="1", cents=20_000))
    assert caught.value.delay == timedelta(seconds=30)

    with pytest.raises(GiveUp):
        await charge(Invoice(number="1", cents=-1))


@pytest.mark.broker_worker(max_attempts=3)
async def test_a_charge_is_tried_again(harness: Harness) -> None:
    harness.override(Mailbox, FakeMailbox())
    task_id: str = await harness.publish(charge, Invoice(number="1", cents=20_000), queue="mail")
    await harness.publish("table.vacuum", times=2)
    await harness.advance(timedelta(seconds=1), seconds=44)
    await harness.until(lambda: harness.task(task_id).attempt > 1, longest=timedelta(days=1))
    await harness.cancel(task_id)
    await harness.drain()

    task: TaskView = harness.task(task_id)
    letters: list[LetterView] = harness.dead_letters

    assert task.state is TaskState.CANCELLED
    assert task.retries == [timedelta(seconds=30)] * 2
    assert [attempt.failure.message for attempt in task.attempts if attempt.failure] == ["later"] * 2
    assert not letters


@in_virtual_time
async def check_in_virtual_time() -> TaskState:
    async with Harness(registry, queues={"default": 4}, seed=1, task_timeout="20s") as harness:
        task_id = await harness.publish(factor, {"number": 4})
        await harness.drain()
        harness.assert_succeeded(task_id)
        return harness.tasks(state="succeeded")[0].state


def test_without_the_plugin() -> None:
    state: TaskState = check_in_virtual_time()

    assert state is TaskState.SUCCEEDED

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from uuid import UUID

from broker_worker.message import Message, Properties, TaskId
from broker_worker.outcome import Cancelled, Succeeded
from broker_worker.step import Claim
from broker_worker.task import Holder, Poisoning, Task, TaskState
from broker_worker.testing.clock import in_virtual_time
from broker_worker.worker.runs import CANCEL_INTERVAL, Runs
from broker_worker.worker.stop import StopReason

MESSAGE = Message(TaskId("email", "email.send", "m-1"), b"{}")
ROW = Task(7, MESSAGE.task, TaskState.RUNNING, 1, 3, 5, UUID(int=1), b"")
CLAIM = Claim(ROW, MESSAGE)


@dataclass
class Arrived:
    is_alive: bool = True
    queue: str = "email"
    properties: Properties = field(default_factory=Properties)
    body: bytes = b"{}"
    redelivered: bool = False
    poisoning: Poisoning | None = None

    async def ack(self) -> None: ...


def test_a_run_nobody_spoke_of_is_forgotten() -> None:
    assert Runs().recall(7, 5) is Holder.HERE_FORGOTTEN


def test_a_run_is_here_for_as_long_as_its_channel_lives_and_then_adrift() -> None:
    runs, delivery = Runs(), Arrived()
    runs.remember(CLAIM, delivery)

    before = runs.recall(7, 5)
    delivery.is_alive = False

    assert (before, runs.recall(7, 5)) == (Holder.HERE, Holder.HERE_ADRIFT)


def test_a_run_is_known_by_its_epoch_too() -> None:
    runs = Runs()
    runs.remember(CLAIM, Arrived())

    assert runs.recall(7, 6) is Holder.HERE_FORGOTTEN
    assert runs.recall(8, 5) is Holder.HERE_FORGOTTEN


def test_an_adopted_delivery_is_the_one_that_is_acked_at_the_end() -> None:
    runs, fresh = Runs(), Arrived()
    runs.remember(CLAIM, Arrived(is_alive=False))

    runs.adopt(7, 5, fresh)

    assert runs.recall(7, 5) is Holder.HERE
    assert runs.forget(CLAIM) is fresh


def test_adopting_or_concluding_an_unknown_run_does_nothing() -> None:
    runs = Runs()

    runs.adopt(7, 5, Arrived())
    runs.conclude(CLAIM, Cancelled())

    assert len(runs) == 0
    assert runs.forget(CLAIM) is None


def test_an_outcome_is_kept_until_the_run_is_forgotten() -> None:
    runs = Runs()
    runs.remember(CLAIM, Arrived())

    runs.conclude(CLAIM, Succeeded("1"))

    assert [run.outcome for run in runs.unfinished()] == [Succeeded("1")]
    runs.forget(CLAIM)
    assert runs.unfinished() == []


def test_two_claims_of_one_task_are_two_runs() -> None:
    runs = Runs()
    second = Claim(replace(ROW, epoch=6), MESSAGE)
    runs.remember(CLAIM, Arrived())
    runs.remember(second, Arrived())

    runs.forget(CLAIM)

    assert runs.keys() == [7]
    assert runs.recall(7, 6) is Holder.HERE


def test_a_run_is_found_by_the_delivery_that_claimed_and_by_the_one_that_took_its_place() -> None:
    runs, first, second = Runs(), Arrived(), Arrived()
    runs.remember(CLAIM, first)
    runs.adopt(7, 5, second)

    (run,) = runs.unfinished()
    assert runs.led_to_by(first) is run
    assert runs.led_to_by(second) is run
    assert runs.led_to_by(Arrived()) is None
    assert run.origin is first


@in_virtual_time
async def test_a_run_that_an_operator_cancels_is_asked_again_and_not_at_each_look() -> None:
    runs, told = Runs(), list[float]()
    runs.remember(CLAIM, Arrived())
    loop = asyncio.get_running_loop()
    runs.stop_of(CLAIM).tell(lambda: told.append(loop.time()))  # where `asyncio.wait_for` drops it, for one

    for _ in range(12):
        runs.cancel(7, 5)
        await asyncio.sleep(1)

    assert told == [0, CANCEL_INTERVAL, 2 * CANCEL_INTERVAL]


@in_virtual_time
async def test_a_run_that_is_asked_for_another_reason_is_left_alone_by_an_operators_cancel() -> None:
    runs, told = Runs(), list[str]()
    runs.remember(CLAIM, Arrived())
    runs.stop_of(CLAIM).ask(StopReason.TIMEOUT)
    runs.stop_of(CLAIM).tell(lambda: told.append("told"))

    for _ in range(12):
        runs.cancel(7, 5)
        await asyncio.sleep(1)

    assert told == ["told"]

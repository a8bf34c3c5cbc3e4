"""When a daemon that can't consume asks for a fresh process, and when it never does."""

from __future__ import annotations

from broker_worker.errors import BrokerUnavailableError
from broker_worker.services.guard import INTERVAL, PATIENCE, Guard
from tests.unit.test_heartbeat import HandClock


class Scene:
    def __init__(self, **consuming: bool) -> None:
        self.clock = HandClock()
        self.consuming = consuming
        self.is_away = False
        self.has_unrecorded = False
        self.reasons: list[str] = []
        self.guard = Guard(
            consuming=lambda: self.consuming,
            reach_afresh=self.reach_afresh,
            has_unrecorded=lambda: self.has_unrecorded,
            give_up=self.reasons.append,
            clock=self.clock,
        )

    async def reach_afresh(self) -> None:
        if self.is_away:
            raise BrokerUnavailableError("away")

    async def pass_minutes(self, minutes: float) -> None:
        for _ in range(round(minutes * 60 / INTERVAL.total_seconds())):
            await self.guard.run_once()
            await self.clock.sleep(INTERVAL.total_seconds())

    async def lose(self, *queues: str) -> None:
        """Consume all once, and then not these."""
        await self.guard.run_once()
        self.consuming = {queue: queue not in queues for queue in self.consuming}


MINUTES = PATIENCE.total_seconds() / 60


async def test_after_five_minutes_without_consuming_a_fresh_process_is_asked_for() -> None:
    scene = Scene(default=True)
    await scene.lose("default")

    await scene.pass_minutes(MINUTES)
    was_patient = not scene.reasons
    await scene.pass_minutes(0.5)

    assert was_patient
    assert scene.reasons[0] == (
        "default could not be consumed for 5 minutes, though broker and database answer"
    )


async def test_a_server_that_is_away_is_waited_for_however_long() -> None:
    scene = Scene(default=True)
    await scene.lose("default")
    scene.is_away = True

    await scene.pass_minutes(100 * MINUTES)

    assert scene.reasons == []


async def test_the_time_begins_when_both_servers_answer() -> None:
    scene = Scene(default=True)
    await scene.lose("default")

    for _ in range(10):
        await scene.pass_minutes(MINUTES - 1)
        scene.is_away = True
        await scene.pass_minutes(1)
        scene.is_away = False

    assert scene.reasons == []


async def test_what_comes_back_in_time_begins_anew() -> None:
    scene = Scene(default=True)
    for _ in range(10):
        await scene.lose("default")
        await scene.pass_minutes(MINUTES - 1)
        scene.consuming = {"default": True}

    assert scene.reasons == []


async def test_an_outcome_that_is_in_memory_only_is_waited_for() -> None:
    scene = Scene(default=True)
    await scene.lose("default")
    scene.has_unrecorded = True
    await scene.pass_minutes(3 * MINUTES)
    was_patient = not scene.reasons

    scene.has_unrecorded = False
    await scene.pass_minutes(0.5)

    assert was_patient
    assert scene.reasons


async def test_one_queue_of_several_that_is_lost_is_worth_one_fresh_process() -> None:
    scene = Scene(good=True, bad=True)
    await scene.lose("bad")

    await scene.pass_minutes(MINUTES + 1)

    assert scene.reasons[0].startswith("bad could not be consumed")


async def test_a_queue_that_this_process_never_consumed_costs_the_others_nothing() -> None:
    scene = Scene(good=True, bad=False)

    await scene.pass_minutes(100)

    assert scene.reasons == []


async def test_with_nothing_consumed_from_the_start_a_fresh_process_is_asked_for() -> None:
    scene = Scene(good=False, bad=False)

    await scene.pass_minutes(MINUTES + 1)

    assert scene.reasons[0].startswith("bad, good could not be consumed")

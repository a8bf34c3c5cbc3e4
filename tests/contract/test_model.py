"""Both stores take the steps that the model takes: for every row that it reaches, whatever is done to it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest

from broker_worker.message import Message
from broker_worker.outcome import Reason
from broker_worker.step import Claim
from broker_worker.task import MAX_INTERRUPTIONS, Holder, Lane, Poisoning, Task, TaskState
from tests.model.code import (
    EPOCH,
    ID,
    INTERRUPTIONS_LEFT,
    MAX_ATTEMPTS,
    Change,
    Manner,
    given_up_for_lost,
    met,
    outcome_of,
    recorded,
    reemitted,
    released,
    rescued,
    row_of,
)
from tests.model.explorer import Explorer
from tests.model.moves import Case, Scope
from tests.model.state import Mark, Phase, Row
from tests.support.worlds import MemoryWorld, Worker, World

LONG = timedelta(hours=7)  # whatever there is to be waited for is over by then
SCOPE = Scope("one message", room=1, with_cancel=True)
BURIAL = "burial"
ENDS = (Phase.RETURNED, Phase.FAILED, Phase.GAVE_UP, Phase.INTERRUPTED)

Act = Callable[[Worker, Task], Awaitable[object]]


@dataclass(frozen=True)
class Scene:
    """A row, who runs it, what a worker does, and what the model says of that."""

    row: Row
    holder: Holder
    name: str
    act: Act
    change: Change | None


def message(task: Task, epoch: int) -> Message:
    return Message(task.id, b"{}", epoch=epoch)


def scenes() -> list[Scene]:
    explorer = Explorer(Case(SCOPE))
    explorer.explore()
    found = [row for row in explorer.rows.things if row is not None and not row.is_terminal]
    rows = sorted({row._replace(starts=0, effects=0) for row in found})
    return [scene for row in rows for scene in (of_waiting(row) if row.is_waiting else of_running(row))]


def of_waiting(row: Row) -> list[Scene]:
    arrivals = [
        arriving(row, Holder.NOBODY, manner, is_current=is_current)
        for is_current, manner in itertools.product((True, False), (Manner.AS_USUAL, Manner.GIVEN_UP))
    ]
    overdue = Scene(
        row, Holder.NOBODY, "is sent again", lambda me, _: me.rescues.reemit_overdue(), reemitted(row)
    )
    return [*arrivals, overdue]


def of_running(row: Row) -> list[Scene]:
    arrivals = [
        arriving(row, holder, manner, is_current=False)
        for holder in (Holder.ELSEWHERE, Holder.DEAD, Holder.HERE_FORGOTTEN)
        for manner in (Manner.AS_USUAL, Manner.GIVEN_UP)
    ]
    rescue: Act = lambda me, _: me.rescues.rescue()  # noqa: E731
    release: Act = lambda me, _: me.rescues.release_forgotten([])  # noqa: E731
    bury: Act = lambda me, _: me.rescues.bury_lost()  # noqa: E731
    has, here, dead = row.has_body, Holder.HERE_FORGOTTEN, Holder.DEAD
    return [
        *arrivals,
        *(recording(row, phase) for phase in ENDS),
        Scene(row, dead, "rescue", rescue, rescued(row) if has else None),
        Scene(row, Holder.ELSEWHERE, "rescue", rescue, None),
        Scene(row, here, "release of what is forgotten", release, released(row) if has else None),
        Scene(row, dead, "release of what is forgotten", release, None),
        Scene(row, dead, BURIAL, bury, None if has else given_up_for_lost(row)),
        Scene(row, Holder.ELSEWHERE, BURIAL, bury, None),
    ]


def arriving(row: Row, holder: Holder, manner: Manner, *, is_current: bool) -> Scene:
    poisoning = Poisoning.DELIVERY_LIMIT if manner is Manner.GIVEN_UP else None

    def arrive(me: Worker, task: Task) -> Awaitable[object]:
        copy = message(task, EPOCH if is_current else EPOCH - 1)
        return me.arrive(copy, lane=Lane.HELD, poisoning=poisoning, max_attempts=MAX_ATTEMPTS)

    answer = met(row, is_current=is_current, holder=holder, has_slot=True, manner=manner)
    name = f"arrival of {'the current' if is_current else 'a stale'} copy, {manner.name}"
    return Scene(row, holder, name, arrive, answer.change)


def recording(row: Row, phase: Phase) -> Scene:
    def record(me: Worker, task: Task) -> Awaitable[object]:
        return me.tasks.record(Claim(task, message(task, EPOCH - 1)), outcome_of(phase, row.attempt))

    return Scene(row, Holder.HERE_FORGOTTEN, f"record of {phase.name}", record, recorded(row, phase))


@dataclass
class Stage:
    """A world with a worker that acts, one that lives and one that died hours ago."""

    world: World
    me: Worker
    living: Worker
    dead: Worker
    count: int = 0

    async def set_up(self, scene: Scene) -> Task:
        """Make a task whose row is that of the scene."""
        self.count += 1
        first = Message(ID._replace(id=f"m-{self.count}"), b"{}")
        row, task = scene.row, first.task
        if scene.name == BURIAL:  # each dead worker is walked once
            self.dead = await died_long_ago(self.world)
        claim = await self.living.claim(first, max_attempts=MAX_ATTEMPTS)
        if row.has_body:
            await self.me.arrive(first)
        self.living.runs.forget(claim)
        holder = {Holder.HERE_FORGOTTEN: self.me, Holder.DEAD: self.dead}.get(scene.holder, self.living)
        await self.world.edit(
            task,
            worker=holder.id,
            state=str(row.state) if not isinstance(self.world, MemoryWorld) else row.state,
            attempt=row.attempt,
            epoch=EPOCH,
            has_body=row.has_body,
            is_cancel_requested=row.is_cancel_requested,
            reason=Reason.CRASHED if row.mark is Mark.CRASHED else None,
            interruptions=MAX_INTERRUPTIONS - INTERRUPTIONS_LEFT + row.interruptions,
            poisonings=row.poisonings,
        )
        await self._date(task_id=task.id, is_waiting=row.is_waiting)
        return await self.world.row(task)

    async def _date(self, *, task_id: str, is_waiting: bool) -> None:
        """Let a run have begun, or a copy have been due, long ago."""
        task = ID._replace(id=task_id)
        long_ago = await self.world.now() - 2 * LONG
        due_at = long_ago if is_waiting else None
        if isinstance(self.world, MemoryWorld):
            kept = self.world.database.tasks[task]
            kept.started_at, kept.due_at = long_ago, due_at
        else:
            await self.world.edit(task, started_at=long_ago, due_at=due_at)

    async def clear(self, task: Task) -> None:
        """Let nothing happen any more to what is left of a scene."""
        ended = {"state": TaskState.CANCELLED, "has_body": False}
        if isinstance(self.world, MemoryWorld):
            del self.world.database.tasks[task.id]
            self.world.database.outbox.clear()
        elif (await self.world.row(task.id)).state in {"queued", "running", "retrying"}:
            await self.world.edit(task.id, **{**ended, "state": "cancelled"}, due_at=None)
        for worker in (self.me, self.living):
            for run in worker.runs.unfinished():
                worker.runs.forget(run.claim)


async def stage(world: World) -> Stage:
    me, living = await world.join(), await world.join()
    return Stage(world, me, living, await died_long_ago(world))


async def died_long_ago(world: World) -> Worker:
    worker = await world.join()
    await world.kill(worker)
    await world.pass_time(LONG)
    return worker


@pytest.mark.timeout(600)
async def test_the_stores_take_the_steps_of_the_model(world: World) -> None:
    set_up = await stage(world)
    differences = []
    for scene in scenes():
        before = await set_up.set_up(scene)
        owed = len(await world.owed_epochs())

        await scene.act(set_up.me, before)

        after = await world.row(before.id)
        said = after_of(scene, before)
        shown = (row_of(None, after), after.epoch, len(await world.owed_epochs()) > owed)
        has_body = (await world.stored(before.id)) is not None
        if shown != said or (
            after.state not in {"succeeded", "dead", "cancelled"} and has_body != after.has_body
        ):
            differences.append((scene.name, scene.holder, scene.row, said, shown))
        await set_up.clear(before)

    assert differences == []


def after_of(scene: Scene, before: Task) -> tuple[Row, int, bool]:
    """What the model says: the row, its epoch, and whether anything is owed."""
    change = scene.change
    if change is None:
        return row_of(None, before), EPOCH, False
    row = change.row._replace(starts=0, effects=0)
    return row, EPOCH + change.ages, change.sends_copy or row.state is TaskState.DEAD

"""What attempts and those who watch them have beside a claim, in each of the worlds."""

from __future__ import annotations

from sqlalchemy import text

from broker_worker.message import TaskId
from broker_worker.ports import Checkpoints
from broker_worker.services.cancels import Requests
from broker_worker.services.progress import Reports
from broker_worker.store.cancels import CancelStore
from broker_worker.store.checkpoints import CheckpointStore
from broker_worker.store.interventions import cancel_task
from broker_worker.store.progress import ProgressStore
from broker_worker.store.queries import TaskLookup
from broker_worker.testing.memory import MemoryStore
from tests.support.worlds import SCHEMA, MemoryWorld, PostgresWorld, Worker, World


def checkpoints_of(world: World, worker: Worker) -> Checkpoints:
    return CheckpointStore(world.admin) if isinstance(world, PostgresWorld) else _in_memory(worker)


def reports_of(world: World, worker: Worker) -> Reports:
    return (
        ProgressStore(world.admin, worker=worker.id)
        if isinstance(world, PostgresWorld)
        else _in_memory(worker)
    )


def requests_of(world: World, worker: Worker) -> Requests:
    return (
        CancelStore(world.admin, worker=worker.id) if isinstance(world, PostgresWorld) else _in_memory(worker)
    )


async def progress_of(world: World, task: TaskId) -> tuple[float | None, str | None]:
    """How far a task's row says that it is."""
    if isinstance(world, MemoryWorld):
        row = world.database.tasks[task]
        return row.progress, row.progress_note
    assert isinstance(world, PostgresWorld)
    async with world.admin.transaction() as connection:
        found = await connection.execute(
            text(f"SELECT progress, progress_note FROM {SCHEMA}.tasks WHERE key = :key"),
            {"key": (await world.row(task)).key},
        )
        progress, note = found.one()
    return progress, note


async def cancel(world: World, task: TaskId) -> None:
    """Cancel a task as an operator does."""
    if isinstance(world, MemoryWorld):
        world.database.cancel(task)
    else:
        assert isinstance(world, PostgresWorld)
        await cancel_task(world.admin, TaskLookup(task.id, task.queue, task.name), actor="ada")


def _in_memory(worker: Worker) -> MemoryStore:
    assert isinstance(worker.tasks, MemoryStore)
    return worker.tasks

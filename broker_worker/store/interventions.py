"""What an operator does to one task: cancel it, or erase what it says about people."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker_worker.errors import BrokerWorkerError
from broker_worker.message import TaskId
from broker_worker.ports import CANCEL_NOTICE
from broker_worker.step import step_of_cancel
from broker_worker.store.apply import apply
from broker_worker.store.audit import AuditEntry, Verdict, write_audit
from broker_worker.store.database import Database
from broker_worker.store.notices import notify
from broker_worker.store.queries import TaskLookup, find_keys
from broker_worker.store.rows import COLUMNS, to_task
from broker_worker.task import TERMINAL, Task, TaskState


class NoSuchTaskError(BrokerWorkerError):
    """No row has this identity: nothing was received under it yet, or its row was pruned."""

    def __init__(self, lookup: TaskLookup) -> None:
        super().__init__(f"no task {lookup}: not received yet, never sent, or pruned")


class AmbiguousTaskError(BrokerWorkerError):
    """Several tasks have this id, in other queues or under other names."""

    def __init__(self, lookup: TaskLookup, tasks: Sequence[TaskId]) -> None:
        found = ", ".join(f"queue {task.queue} name {task.name}" for task in tasks)
        super().__init__(f"several tasks {lookup}: say which by queue and name; there are {found}")


async def cancel_task(database: Database, lookup: TaskLookup, *, actor: str) -> Verdict:
    """Cancel a task: at once where it waits; where it runs, its worker is asked to. Repeatable.

    Raises:
        NoSuchTaskError: there is none.
        AmbiguousTaskError: there are several.
    """
    async with database.transaction() as connection:
        task = await _lock(connection, database.schema, lookup)
        if task.state in TERMINAL:
            return Verdict(task.id.id, is_done=False, detail=f"it has {_ended(task.state)} already")
        if task.is_cancel_requested:
            return Verdict(task.id.id, is_done=True, detail="its worker is asked already")
        await apply(connection, database.schema, [step_of_cancel(task)], worker=None)
        if task.state is TaskState.RUNNING:
            await notify(connection, database.schema, f"{CANCEL_NOTICE}{task.key}")
        entry = AuditEntry.of_task(actor, "cancel", task.id, key=task.key)
        await write_audit(connection, database.schema, entry)
    detail = "its worker is asked to stop" if task.state is TaskState.RUNNING else "cancelled"
    return Verdict(task.id.id, is_done=True, detail=detail)


async def erase_task(database: Database, lookup: TaskLookup, *, actor: str) -> Verdict:
    """Delete what a finished task says about people: body, result, texts, checkpoint. Repeatable.

    Its row stays with identity, state, times and the body's digest, so duplicates of it are
    still known. Its dead letters stay without their content; open ones are discarded.

    Raises:
        NoSuchTaskError: there is none.
        AmbiguousTaskError: there are several.
    """
    async with database.transaction() as connection:
        task = await _lock(connection, database.schema, lookup)
        if task.state not in TERMINAL:
            detail = f"it is {task.state}: only a finished task can be erased; cancel it first"
            return Verdict(task.id.id, is_done=False, detail=detail)
        if await _owes(connection, database.schema, task):
            detail = "a message of it is still on its way to the broker: try again when it is sent"
            return Verdict(task.id.id, is_done=False, detail=detail)
        await _erase(connection, database.schema, task)
        entry = AuditEntry.of_task(actor, "erase", task.id, key=task.key)
        await write_audit(connection, database.schema, entry)
    return Verdict(task.id.id, is_done=True, detail="erased")


async def _lock(connection: AsyncConnection, schema: str, lookup: TaskLookup) -> Task:
    keys = await find_keys(connection, schema, lookup)
    rows = await connection.execute(
        text(f"""
            SELECT {COLUMNS} FROM {schema}.tasks t
            WHERE t.key = ANY(CAST(:keys AS bigint[])) ORDER BY t.key LIMIT 10 FOR UPDATE"""),
        {"keys": keys},
    )
    tasks = [to_task(row) for row in rows]
    if not tasks:
        raise NoSuchTaskError(lookup)
    if len(tasks) > 1:
        raise AmbiguousTaskError(lookup, [task.id for task in tasks])
    return tasks[0]


async def _owes(connection: AsyncConnection, schema: str, task: Task) -> bool:
    rows = await connection.execute(
        text(f"""
            SELECT 1 FROM {schema}.outbox o WHERE o.task_key = :key
              OR o.dead_letter IN (SELECT d.id FROM {schema}.dead_letters d WHERE {LETTERS_OF_TASK})
            LIMIT 1"""),
        {"key": task.key, "queue": task.id.queue, "name": task.id.name, "id": task.id.id},
    )
    return rows.first() is not None


# a conflict's letter has the identity and no key
LETTERS_OF_TASK = """(d.task_key = :key
  OR (d.task_key IS NULL AND d.queue = :queue AND d.name = :name AND d.message_id = :id))"""


async def _erase(connection: AsyncConnection, schema: str, task: Task) -> None:
    values = {"key": task.key}
    for statement in (
        f"DELETE FROM {schema}.payloads WHERE task_key = :key",
        f"DELETE FROM {schema}.checkpoints WHERE task_key = :key",
        f"UPDATE {schema}.attempts SET error_message = NULL, traceback = NULL WHERE task_key = :key",
        f"""UPDATE {schema}.tasks SET result = NULL, error_message = NULL, correlation_id = NULL,
              progress_note = NULL, has_body = false WHERE key = :key""",
    ):
        await connection.execute(text(statement), values)
    await connection.execute(
        text(f"""
            UPDATE {schema}.dead_letters d SET body = '', properties = '{{}}', error_message = '',
              resolved_at = coalesce(d.resolved_at, now()), resolution = coalesce(d.resolution, 'discarded')
            WHERE {LETTERS_OF_TASK}"""),
        {"key": task.key, "queue": task.id.queue, "name": task.id.name, "id": task.id.id},
    )


def _ended(state: TaskState) -> str:
    return {TaskState.DEAD: "died"}.get(state, str(state))

"""What the database itself remembers of a run: triggers whose tables no worker can reach, and their dump."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import asyncpg

from tests.faults.records import (
    AttemptChange,
    Effect,
    FinalLetter,
    FinalOutbox,
    FinalTask,
    LetterChange,
    OutboxChange,
    Record,
    TaskChange,
    WorkerChange,
    line,
)

# `at`, `seq` and `xid` of each come by themselves. A function runs by the rights of its owner, so that who
# writes a task writes history too, and has no other way to it.
WATCHED: Mapping[str, tuple[str, str, str]] = {
    # table: when, condition, columns and values
    "tasks": (
        "INSERT OR DELETE OR UPDATE",
        "",
        """
        key bigint = coalesce(NEW.key, OLD.key), queue text = coalesce(NEW.queue, OLD.queue),
        name text = coalesce(NEW.name, OLD.name), id text = coalesce(NEW.message_id, OLD.message_id),
        digest text = encode(coalesce(NEW.digest, OLD.digest), 'hex'),
        old_state text = coalesce(OLD.state, ''), new_state text = coalesce(NEW.state, ''),
        old_epoch int = coalesce(OLD.epoch, 0), new_epoch int = coalesce(NEW.epoch, 0),
        old_attempt int = coalesce(OLD.attempt, 0), new_attempt int = coalesce(NEW.attempt, 0),
        old_worker text = coalesce(OLD.worker::text, ''), new_worker text = coalesce(NEW.worker::text, ''),
        old_body boolean = coalesce(OLD.has_body, false), new_body boolean = coalesce(NEW.has_body, false),
        interruptions int = coalesce(NEW.interruptions, 0), max_attempts int = coalesce(NEW.max_attempts, 0),
        reason text = coalesce(NEW.reason, ''), reply_to text = coalesce(NEW.reply_to, ''),
        is_cancel_requested boolean = coalesce(NEW.is_cancel_requested, false)""",
    ),
    "outbox": (
        "INSERT OR DELETE",
        "",
        """
        op text = lower(TG_OP), number bigint = coalesce(NEW.id, OLD.id),
        kind text = coalesce(NEW.kind, OLD.kind),
        key bigint = coalesce(NEW.task_key, OLD.task_key, 0), epoch int = coalesce(NEW.epoch, OLD.epoch),
        letter text = coalesce(NEW.dead_letter, OLD.dead_letter)::text,
        event text = coalesce(NEW.properties, OLD.properties) #>> '{headers,bw-event-id}',
        routing_key text = coalesce(NEW.routing_key, OLD.routing_key),
        failures int = coalesce(NEW.failures, OLD.failures)""",
    ),
    "attempts": (
        "INSERT",
        "",
        """
        key bigint = NEW.task_key, epoch int = NEW.epoch, attempt int = NEW.attempt,
        worker text = NEW.worker::text, outcome text = NEW.outcome""",
    ),
    "dead_letters": (
        "INSERT OR DELETE OR UPDATE",
        "",
        """
        op text = lower(TG_OP), letter text = coalesce(NEW.id, OLD.id)::text,
        key bigint = coalesce(NEW.task_key, OLD.task_key, 0), queue text = coalesce(NEW.queue, OLD.queue),
        name text = coalesce(NEW.name, OLD.name), id text = coalesce(NEW.message_id, OLD.message_id),
        reason text = coalesce(NEW.reason, OLD.reason), resolution text = NEW.resolution,
        body text = encode(sha256(coalesce(NEW.body, OLD.body)), 'hex')""",
    ),
    "workers": (
        "INSERT OR UPDATE",
        "IF TG_OP = 'UPDATE' AND OLD.dead_at IS NOT DISTINCT FROM NEW.dead_at THEN RETURN NULL; END IF;",
        """
        op text = CASE WHEN TG_OP = 'INSERT' THEN 'insert'
                       WHEN current_query() LIKE '%beat =%' THEN 'dead' ELSE 'left' END,
        worker text = NEW.id::text, host text = NEW.name, beat bigint = NEW.beat,
        beat_at double precision = extract(epoch FROM NEW.beat_at)""",
    ),
}
KINDS: Mapping[str, type[Record]] = {
    "tasks": TaskChange,
    "outbox": OutboxChange,
    "attempts": AttemptChange,
    "dead_letters": LetterChange,
    "workers": WorkerChange,
}
FINAL: Mapping[type[Record], str] = {
    FinalTask: """
        SELECT key, queue, name, message_id AS id, encode(digest, 'hex') AS digest, state, attempt,
          max_attempts, epoch, interruptions, has_body, coalesce(worker::text, '') AS worker,
          coalesce(reason, '') AS reason FROM broker_worker.tasks""",
    FinalLetter: """
        SELECT id::text AS letter, coalesce(task_key, 0) AS key, queue, coalesce(name, '') AS name,
          coalesce(message_id, '') AS id, reason, coalesce(resolution, '') AS resolution,
          encode(sha256(body), 'hex') AS body FROM broker_worker.dead_letters""",
    FinalOutbox: "SELECT id AS number, kind, coalesce(task_key, 0) AS key, epoch FROM broker_worker.outbox",
    Effect: "SELECT at, seq AS order, queue, name, id, attempt, xid, amount FROM public.effects",
}
EFFECTS = """
CREATE TABLE public.effects (
  seq bigint GENERATED ALWAYS AS IDENTITY,
  at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
  xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
  queue text NOT NULL, name text NOT NULL, id text NOT NULL, attempt int NOT NULL, amount bigint NOT NULL)"""
BATCH = 1000


async def watch(database: asyncpg.Connection, role: str) -> None:
    """Make the triggers on the schema that is there, and the table for effects, which `role` may fill."""
    await database.execute("CREATE SCHEMA witness")
    for table, (when, condition, columns) in WATCHED.items():
        named = [each.partition(" = ") for each in split_columns(columns)]
        names = ", ".join(column.split()[0] for column, _, _ in named)
        values = ", ".join(value for _, _, value in named)
        await database.execute(f"""
            CREATE TABLE witness.{table} (
              seq bigint GENERATED ALWAYS AS IDENTITY, at double precision, xid bigint,
              {", ".join(column for column, _, _ in named)});
            CREATE FUNCTION witness.note_{table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp AS $$
            BEGIN
              {condition}
              INSERT INTO witness.{table} (at, xid, {names})
              VALUES (extract(epoch FROM clock_timestamp()), pg_current_xact_id()::text::bigint, {values});
              RETURN NULL;
            END $$;
            CREATE TRIGGER witness AFTER {when} ON broker_worker.{table}
            FOR EACH ROW EXECUTE FUNCTION witness.note_{table}();
            """)
    await database.execute(EFFECTS)
    await database.execute(f"GRANT INSERT, SELECT ON public.effects TO {role}")


async def dump(database: asyncpg.Connection, directory: Path) -> None:
    """Write the history, the effects and how the tables are now."""
    for table, kind in KINDS.items():
        columns = [column.split()[0] for column in split_columns(WATCHED[table][2])]
        await write(
            database,
            directory,
            kind,
            f"""SELECT at, seq AS order, xid, {", ".join(columns)},
                  extract(epoch FROM pg_xact_commit_timestamp(xid::text::xid))::float8 AS committed_at
                FROM witness.{table} ORDER BY seq""",
        )
    for kind, query in FINAL.items():
        await write(database, directory, kind, query)


async def write(database: asyncpg.Connection, directory: Path, kind: type[Record], query: str) -> None:
    """Write the rows of a query as a file of records."""
    with (directory / f"{kind.file}.jsonl").open("w") as lines:
        async with database.transaction():
            async for row in database.cursor(query, prefetch=BATCH):
                found = {name: value for name, value in row.items() if value is not None}
                lines.write(line(kind(**found)) + "\n")


def split_columns(columns: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    found, depth, start = [], 0, 0
    for at, character in enumerate(columns):
        depth += (character in "({") - (character in ")}")
        if character == "," and depth == 0:
            found.append(columns[start:at].strip())
            start = at + 1
    return [*found, columns[start:].strip()]

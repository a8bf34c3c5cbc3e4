"""Tasks of ten days, finished long before a measure begins: written by SQL, two connections at a time.

Of 100,000 tasks some 96,900 succeeded at once and 1,960 on their second attempt; 1,000 are dead, 100 were
cancelled, 20 expired, 10 wait for a retry, 5 for their time, and 1 runs under a worker that nobody knows.
Each dead task has a failed attempt and a letter; every second letter is resolved. Ids are random.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg

DAYS = 10
PARTS = 2  # at a time: Postgres takes a core for each
QUICKLY = (
    "SET synchronous_commit = off",
    "SET maintenance_work_mem = '1GB'",
    "SET work_mem = '256MB'",
    "SET session_replication_role = replica",  # no trigger looks at what is right by its making
    "SET search_path = broker_worker",
)
# New tasks fill a page up to the fill factor; when all have ended it is fuller than that, and takes no more.
# Ended tasks that fill pages no further would leave room here and there for new ones, as there never is.
AS_FULL_AS_ENDED = "ALTER TABLE tasks SET (fillfactor = 50)"
FILL_FACTOR = """
SELECT format('ALTER TABLE tasks SET (%s)', option) FROM pg_class, unnest(reloptions) option
WHERE oid = 'tasks'::regclass AND option LIKE 'fillfactor=%'
"""
WITHOUT_INDEXES = """
ALTER TABLE tasks DROP CONSTRAINT tasks_queue_name_message_id_key;
DROP INDEX tasks_due;
DROP INDEX tasks_recoverable;
DROP INDEX tasks_other
"""
INDEXES = """
SELECT pg_get_indexdef(indexrelid) FROM pg_index
WHERE indrelid = 'tasks'::regclass
  AND indexrelid::regclass::text IN ('tasks_due', 'tasks_recoverable', 'tasks_other')
"""
IDENTITY = "ALTER TABLE tasks ADD CONSTRAINT tasks_queue_name_message_id_key UNIQUE (queue, name, message_id)"
TASKS = f"""
INSERT INTO tasks (key, queue, name, message_id, digest, state, attempt, max_attempts, epoch, worker, result,
  created_at, started_at, finished_at, reason, error_type, error_message, has_body, due_at)
OVERRIDING SYSTEM VALUE
SELECT i, queue, name, gen_random_uuid()::text, sha256(int8send(i)), state, runs, 5, runs,
  'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', CASE WHEN state = 'succeeded' THEN '{{"x": 1}}'::json END,
  created_at, created_at, CASE WHEN NOT waits AND state <> 'running' THEN created_at + took END,
  CASE WHEN state = 'dead' THEN 'gave_up' END,
  CASE WHEN fails THEN 'ValueError' END, CASE WHEN fails THEN 'no such address' END,
  waits, CASE WHEN waits THEN now() + interval '1 day' END
FROM generate_series($2::bigint, $3::bigint) i
CROSS JOIN LATERAL (SELECT
  now() - interval '{DAYS} days' + i * (interval '{DAYS} days' / $1::bigint) AS created_at,
  i % 1000 * interval '1 ms' AS took,
  CASE WHEN i % 50 = 0 THEN 2 ELSE 1 END AS runs,
  CASE WHEN i % 100 = 7 THEN 'dead' WHEN i % 1000 = 8 THEN 'cancelled' WHEN i % 5000 = 9 THEN 'expired'
       WHEN i % 10000 = 11 THEN 'retrying' WHEN i % 20000 = 12 THEN 'queued'
       WHEN i % 100000 = 13 THEN 'running' ELSE 'succeeded' END AS state,
  CASE WHEN i % 100000 = 51 THEN 'rare' WHEN i < $1::bigint / 200 AND i % 4 = 1 THEN 'retired'
       WHEN i % 10 < 6 THEN 'bench' WHEN i % 10 < 9 THEN 'email' ELSE 'reports' END AS queue,
  CASE WHEN i % 50000 = 53 THEN 'seldom' WHEN i % 10 < 6 THEN 'bench' ELSE 'task.' || i % 5 END AS name) t
CROSS JOIN LATERAL (SELECT state IN ('retrying', 'queued') AS waits, state IN ('dead', 'retrying') AS fails) f
"""
BESIDE = (
    "SELECT setval(pg_get_serial_sequence('tasks', 'key'), max(key)) FROM tasks",
    """
    INSERT INTO attempts (task_key, epoch, attempt, outcome, error_type, error_message, traceback, ended_at)
    SELECT key, epoch - 1, 1, 'failed', 'ValueError', 'no such address', repeat('  line', 150), created_at
    FROM tasks WHERE attempt = 2 OR state = 'dead'
    """,
    """
    INSERT INTO payloads (task_key, body, properties)
    SELECT key, '{"to": "ada@example.org"}'::bytea, '{}' FROM tasks WHERE has_body
    """,
    """
    INSERT INTO dead_letters (id, task_key, queue, name, message_id, reason, error_type, error_message,
      fingerprint, attempt, epoch, worker, body, properties, failed_at, resolved_at, resolution)
    SELECT gen_random_uuid(), key, queue, name, message_id,
      CASE key / 100 % 10 WHEN 0 THEN 'timeout' WHEN 1 THEN 'crashed' ELSE 'gave_up' END,
      error_type, error_message, left(md5((key % 97)::text), 12), attempt, epoch, worker,
      convert_to(repeat('x', 200), 'UTF8'), '{"content_type": "application/json"}', finished_at,
      CASE WHEN key / 100 % 2 = 0 THEN now() END, CASE WHEN key / 100 % 2 = 0 THEN 'replayed' END
    FROM tasks WHERE state = 'dead'
    """,
    "VACUUM (ANALYZE) tasks",
    "VACUUM (ANALYZE) attempts",
    "VACUUM (ANALYZE) dead_letters",
    "CHECKPOINT",
)


async def write_history(url: str, count: int) -> None:
    """Put `count` tasks into an empty schema; `url` is the superuser's. Ten million take two minutes."""
    connections = [await asyncpg.connect(url) for _ in range(PARTS)]
    first = connections[0]
    try:
        for connection in connections:
            for setting in QUICKLY:
                await connection.execute(setting)
        indexes = [row[0] for row in await first.fetch(INDEXES)]
        fill_factor: str = await first.fetchval(FILL_FACTOR)
        await first.execute(WITHOUT_INDEXES)
        await first.execute(AS_FULL_AS_ENDED)
        await asyncio.gather(*(_write_part(connections, number, count) for number in range(PARTS)))
        for statement in (fill_factor, IDENTITY, *indexes, *BESIDE):
            await first.execute(statement)
    finally:
        for connection in connections:
            await connection.close()


async def _write_part(connections: Sequence[asyncpg.Connection], number: int, count: int) -> None:
    bounds = [count * part // PARTS for part in range(PARTS + 1)]
    await connections[number].execute(TASKS, count, bounds[number] + 1, bounds[number + 1])

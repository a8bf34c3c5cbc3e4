"""The peers among the contestants, each at the best setting that its own documentation gives.

Where the documentation leaves the prefetch open, a peer gets as many messages as the bare loops: 1,000, for
all its processes together.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.contestant import Contestant, Goal

FASTSTREAM = Contestant(
    name="faststream",
    title="FastStream",
    runner="faststream_worker",
    python="peers",
    setting="faststream run, uvloop, logger=None, apply_types=False, prefetch 1000, acks after the handler",
    variables={"BENCH_PREFETCH": "1000"},
    goal=Goal(2.0),
)

TASKIQ = Contestant(
    name="taskiq",
    title="taskiq-aio-pika",
    runner="taskiq_worker",
    python="peers",
    setting="taskiq worker, uvloop, --no-parse, qos 1000, --max-async-tasks 1000, acks when executed",
    fills=True,
    variables={"BENCH_PREFETCH": "1000"},
    goal=Goal(2.0),
)

_DRAMATIQ = Contestant(
    name="dramatiq",
    title="Dramatiq",
    runner="dramatiq_worker",
    python="peers",
    fills=True,
    begins_at="delivery",  # its consumer decodes what is prefetched before a thread comes to call the actor
)

DRAMATIQ = (
    replace(
        _DRAMATIQ,
        name="dramatiq_1x8",
        title="Dramatiq, 1 process of 8 threads",
        setting="dramatiq, prefetch 1000, acks after the actor",
        is_quick=False,
        variables={"BENCH_PROCESSES": "1", "dramatiq_queue_prefetch": "1000"},
    ),
    replace(
        _DRAMATIQ,
        name="dramatiq_2x8",
        title="Dramatiq, 2 processes of 8 threads",
        setting="dramatiq, prefetch 500 each, acks after the actor",
        variables={"BENCH_PROCESSES": "2", "dramatiq_queue_prefetch": "500"},
        goal=Goal(1.0),
    ),
)

_CELERY = Contestant(
    name="celery",
    title="Celery",
    runner="celery_worker",
    python="peers",
    setting="worker_prefetch_multiplier=128, task_ignore_result=True, acks before the task (the default)",
    fills=True,
    share=0.25,
    variables={"BENCH_POOL": "solo"},
)

CELERY = (
    replace(_CELERY, name="celery_solo", title="Celery, solo pool", is_quick=False),
    replace(
        _CELERY,
        name="celery_prefork2",
        title="Celery, prefork, 2 processes",
        is_quick=False,
        variables={"BENCH_POOL": "prefork"},
    ),
    replace(
        _CELERY,
        name="celery_db_prefork2",
        title="Celery, prefork, 2 processes, database result backend",
        persists="state and result",
        setting="as above, with results; SQLAlchemy on psycopg",
        share=0.1,
        variables={"BENCH_POOL": "prefork", "BENCH_RESULTS": "1"},
        finished="SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'",
        goal=Goal(30.0),
    ),
)

PROCRASTINATE = Contestant(
    name="procrastinate",
    title="procrastinate",
    runner="procrastinate_worker",
    python="peers",
    persists="each job's status, and events",
    setting="procrastinate worker --concurrency 10, pool of 11, keeps finished jobs (the default)",
    fills=True,
    share=0.1,
    finished="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
    queue=None,
    goal=Goal(10.0),
)

_PGQUEUER = Contestant(
    name="pgqueuer",
    title="pgqueuer",
    runner="pgqueuer_worker",
    python="peers",
    persists="each job's status",
    fills=True,
    finished="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
    queue=None,
)

PGQUEUER = (
    replace(
        _PGQUEUER,
        name="pgqueuer_10",
        title="pgqueuer, batches of 10",
        setting="pgq run --batch-size 10 (the default), asyncpg, uvloop, pgq autovac, durable",
        share=0.5,
        is_quick=False,
        variables={"BENCH_BATCH": "10"},
    ),
    replace(
        _PGQUEUER,
        name="pgqueuer_100",
        title="pgqueuer, batches of 100",
        setting="pgq run --batch-size 100, asyncpg, uvloop, pgq autovac, durable",
        variables={"BENCH_BATCH": "100"},
        goal=Goal(1.0),
    ),
)

PEERS = (FASTSTREAM, TASKIQ, *DRAMATIQ, *CELERY, PROCRASTINATE, *PGQUEUER)

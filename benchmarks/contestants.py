"""All contestants, in the order of the table."""

from __future__ import annotations

from benchmarks.contestant import Contestant, Goal
from benchmarks.peers import PEERS

SUCCEEDED = "SELECT count(*) FROM broker_worker.tasks WHERE state = 'succeeded'"
CONCURRENCY = "400"  # tasks at a time, and so the prefetch; 1,000 are a tenth faster, 200 a tenth slower
PREFETCH = "1000"  # of the loops: more is not faster, less is slower on asyncio's own loop


def _loop(name: str, setting: str, *, uvloop: str) -> Contestant:
    return Contestant(
        name=name,
        title="bare aio-pika loop, ack each",
        runner="aio_pika_loop",
        setting=setting,
        variables={"BENCH_PREFETCH": PREFETCH, "BENCH_FORM": "consume", "BENCH_UVLOOP": uvloop},
        variant_of="aio_pika_loop",
        goal=Goal(1.0),
    )


def _ours(  # the reference, and its variants
    name: str,
    title: str,
    *,
    setting: str,
    goal: Goal | None = None,
    share: float = 1.0,
    is_quick: bool = True,
    **variables: str,
) -> Contestant:
    return Contestant(
        name=name,
        title=title,
        runner="ours",
        persists="every attempt and outcome",
        setting=setting,
        fills=True,
        share=share,
        variables={"BENCH_TASK": "bench", "BENCH_CONCURRENCY": CONCURRENCY, **variables},
        finished=SUCCEEDED,
        queue="bw.q.bench",
        begins_at="delivery" if variables.get("BENCH_IDS") == "0" else "call",
        goal=goal,
        is_quick=is_quick,
    )


LOOPS = (
    _loop("aio_pika_loop_uvloop", f"uvloop, prefetch {PREFETCH}", uvloop="1"),
    _loop("aio_pika_loop_asyncio", f"asyncio, prefetch {PREFETCH}", uvloop="0"),
    Contestant(
        name="aiormq_multi_ack",
        title="bare aiormq, one ack for 50",
        runner="aiormq_multi_ack",
        setting=f"uvloop, prefetch {PREFETCH}",
        variables={"BENCH_PREFETCH": PREFETCH, "BENCH_UVLOOP": "1"},
        goal=Goal(0.5),
    ),
)

REFERENCE = _ours("broker_worker", "broker_worker", setting=f"QUEUES=bench:{CONCURRENCY}")

OURS = (
    REFERENCE,
    _ours(
        "broker_worker_all",
        "broker_worker, keeps all bodies",
        setting=f"QUEUES=bench:{CONCURRENCY}, STORE_PAYLOADS=all",
        is_quick=False,
        BROKER_WORKER_STORE_PAYLOADS="all",
    ),
    _ours(
        "broker_worker_without_id",
        "broker_worker, messages without id",
        setting=f"QUEUES=bench:{CONCURRENCY}",
        BENCH_IDS="0",
        goal=Goal(0.4, of="broker_worker_without_id", to="broker_worker"),
    ),
    _ours(
        "broker_worker_transactional",
        "broker_worker, transactional handler",
        setting="QUEUES=bench:50, TRANSACTIONAL_POOL_SIZE=10 (the default)",
        BENCH_TASK="bench_transactional",
        BENCH_CONCURRENCY="50",
        share=0.2,
        goal=Goal(0.8, of="broker_worker_transactional", to="sqlalchemy_loop"),
    ),
    Contestant(
        name="sqlalchemy_loop",
        title="bare SQLAlchemy loop, the same insert",
        runner="sqlalchemy_loop",
        persists="the handler's row",
        setting="uvloop, prefetch 50, pool of 10",
        fills=True,
        share=0.2,
        variables={"BENCH_PREFETCH": "50", "BENCH_UVLOOP": "1"},
        finished="SELECT count(*) FROM bench_rows",
    ),
    _ours(
        "broker_worker_thread",
        "broker_worker, handler in a thread",
        setting="QUEUES=bench:200",
        is_quick=False,
        BENCH_TASK="bench_thread",
        BENCH_CONCURRENCY="200",
        share=0.5,
    ),
    _ours(
        "broker_worker_process",
        "broker_worker, handler in a child process",
        setting="QUEUES=bench:4",
        is_quick=False,
        BENCH_TASK="bench_process",
        BENCH_CONCURRENCY="4",
        share=0.05,
    ),
)

CONTESTANTS = (*LOOPS, *PEERS, *OURS)

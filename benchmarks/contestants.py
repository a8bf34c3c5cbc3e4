"""All contestants, in the order of the table."""

from __future__ import annotations

from benchmarks.contestant import Contestant

SUCCEEDED = "SELECT count(*) FROM broker_worker.tasks WHERE state = 'succeeded'"
CONCURRENCY = "200"  # tasks at a time, and so the prefetch
PREFETCH = "200"
UVLOOP = {"BENCH_UVLOOP": "1"}


def _loop(name: str, title: str, setting: str, **variables: str) -> Contestant:
    return Contestant(
        name=name,
        title=title,
        runner="aio_pika_loop",
        setting=setting,
        variables={"BENCH_PREFETCH": PREFETCH, "BENCH_FORM": "consume", **variables},
        variant_of="aio_pika_loop",
    )


def _ours(name: str, title: str, setting: str, **variables: str) -> Contestant:
    return Contestant(
        name=name,
        title=title,
        runner="ours",
        persists="every attempt and outcome",
        setting=setting,
        fills=True,
        variables={"BENCH_TASK": "bench", "BENCH_CONCURRENCY": CONCURRENCY, **variables},
        finished=SUCCEEDED,
        queue="bw.q.bench",
    )


LOOPS = (
    _loop("aio_pika_loop_asyncio", "bare aio-pika loop, ack each", f"prefetch {PREFETCH}, asyncio"),
    _loop(
        "aio_pika_loop_uvloop",
        "bare aio-pika loop, ack each",
        f"prefetch {PREFETCH}, uvloop",
        BENCH_UVLOOP="1",
    ),
    Contestant(
        name="aiormq_multi_ack",
        title="bare aiormq, one ack for 50",
        runner="aiormq_multi_ack",
        setting=f"prefetch {PREFETCH}, uvloop",
        variables={"BENCH_PREFETCH": PREFETCH, "BENCH_UVLOOP": "1"},
        goal=0.5,
    ),
)

OURS = (_ours("broker_worker", "broker_worker", f"QUEUES=bench:{CONCURRENCY}"),)

CONTESTANTS = (*LOOPS, *OURS)

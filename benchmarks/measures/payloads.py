"""Large bodies, in MB/s beside the bare aio-pika loop, which does not decode them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.contestant import Contestant
from benchmarks.contestants import LOOPS, REFERENCE
from benchmarks.driving import RunError
from benchmarks.report import Figure
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers
from benchmarks.throughput import compete

GOAL = 0.5


@dataclass(frozen=True, slots=True)
class Size:
    """One size of bodies, and what is best for either side at it."""

    name: str
    bytes: int
    messages: int  # at full scale
    prefetch: int  # of the loops: 1,000 as for small bodies is a third slower
    concurrency: int  # ours


SIZES = (
    Size("64_kib", 64 * 1024, messages=3_000, prefetch=64, concurrency=200),
    Size("1_mib", 1024 * 1024, messages=300, prefetch=4, concurrency=16),
)


async def measure(servers: BenchServers, scale: Scale) -> list[Figure]:
    """Return MB/s of broker_worker and of the faster loop, and their ratio, for each size."""
    figures: list[Figure] = []
    both = [each for each in LOOPS if each.variant_of == "aio_pika_loop"]
    bare_loops = scale.pick(full=both, quick=both[-1:], smoke=both)
    for size in SIZES:
        loops = [_sized(each, size) for each in bare_loops]
        ours, *theirs = await _rates(servers, scale, size, [_sized(REFERENCE, size), *loops])
        validated = f"QUEUES=bench:{size.concurrency}; JSON, validated for the handler"
        bare = f"the faster bare aio-pika loop, prefetch {size.prefetch}; nothing is decoded"
        figures += [
            Figure(f"payload_{size.name}", ours, "MB/s", note=validated),
            Figure(f"payload_{size.name}_loop", max(theirs), "MB/s", note=bare),
            Figure(f"payload_{size.name}_ratio", ours / max(theirs), "ratio", goal=GOAL),
        ]
    return figures


async def _rates(
    servers: BenchServers, scale: Scale, size: Size, contestants: Sequence[Contestant]
) -> list[float]:
    """Return the median of each one's interleaved rounds in MB/s."""
    messages = size.messages // scale.pick(full=1, quick=3, smoke=10)
    rounds = scale.pick(full=3, quick=1, smoke=1)
    standings = await compete(contestants, servers, replace(scale, messages=messages, rounds=rounds))
    for standing in standings:
        if standing.failure:
            raise RunError(standing.failure)
    return [standing.rate * size.bytes / 1e6 for standing in standings]


def _sized(contestant: Contestant, size: Size) -> Contestant:
    """From the first delivery: with so few messages, what arrives before the first call is a part of all."""
    given = {
        "BENCH_SIZE": str(size.bytes),
        "BENCH_PREFETCH": str(size.prefetch),
        "BENCH_CONCURRENCY": str(size.concurrency),
    }
    return replace(contestant, variables={**contestant.variables, **given}, begins_at="delivery")

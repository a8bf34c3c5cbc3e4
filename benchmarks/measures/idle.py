"""How much of a core a daemon takes that has nothing to do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import processor_time
from benchmarks.daemon import daemon, prepare
from benchmarks.report import Figure
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers

GOAL = 1.0  # percent of a core
SECONDS_TO_SETTLE = 6.0  # after its start: then each of its services has had a first turn


async def measure(servers: BenchServers, scale: Scale) -> list[Figure]:
    """Start one with default settings, and read its processor time twice."""
    seconds = scale.pick(full=30.0, quick=4.0, smoke=1.0)
    with TemporaryDirectory(prefix="broker-worker-bench-") as folder:
        async with servers.place() as place:
            await prepare(place)
            async with daemon(place, Path(folder) / "daemon.log") as running:
                await asyncio.sleep(scale.pick(full=SECONDS_TO_SETTLE, quick=3.0, smoke=0.0))
                began, used = time.monotonic(), processor_time.below(running.program.pid)
                await asyncio.sleep(seconds)
                used = processor_time.below(running.program.pid) - used
                share = 100 * used / (time.monotonic() - began)
    return [
        Figure(
            "idle",
            share,
            "%",
            goal=GOAL,
            is_upper_bound=True,
            note=f"processor time of an idle daemon over {seconds:.0f} s, of one core",
        )
    ]

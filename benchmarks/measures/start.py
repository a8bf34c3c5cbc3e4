"""How long a daemon takes from exec to consuming."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.daemon import daemon, prepare
from benchmarks.report import Figure
from benchmarks.scale import Scale
from benchmarks.servers import BenchServers

GOAL = 1.5  # seconds


async def measure(servers: BenchServers, scale: Scale) -> list[Figure]:
    """Start one after the other; the first is not counted: it may compile the modules that it imports.

    It consumes when the broker shows its consumer, asked every 5 ms. Schema and topology are there.
    """
    starts = scale.pick(full=7, quick=2, smoke=1)
    seconds = []
    with TemporaryDirectory(prefix="broker-worker-bench-") as folder:
        async with servers.place() as place:
            await prepare(place)
            for _ in range(starts + 1):
                async with daemon(place, Path(folder) / "daemon.log") as running:
                    seconds.append(running.seconds_to_consume)
    counted = seconds[1:]
    return [
        Figure(
            "start",
            median(counted),
            "s",
            goal=GOAL,
            is_upper_bound=True,
            note=f"exec to consuming, median of {starts}, {min(counted):.2f} to {max(counted):.2f}",
        )
    ]

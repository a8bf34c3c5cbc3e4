"""The series that each attempt changes, as plain numbers until somebody asks.

The library's own counters take a lock and two checks for each change: for the eight changes
of an attempt a tenth of what a small task costs. These are changed on the event loop alone;
a scrape, on its own thread, may see one without the other for a moment.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

PREFIX = "broker_worker_"
RUN_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)  # seconds
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)  # seconds


class AttemptSeries(Collector):
    """Counts attempts; a collector for the library's registry."""

    def __init__(self, queues: Iterable[str], *, now: float) -> None:
        """Show `queues` from the start; `now` is the time of the last commit until there is one."""
        self.last_commit = now
        self._in_flight = dict.fromkeys(queues, 0)
        self._waited: dict[tuple[str, ...], _Spread] = {}
        self._ran: dict[tuple[str, ...], _Spread] = {}
        self._ended: dict[tuple[str, ...], int] = {}

    def begin(self, queue: str, waited: float | None) -> None:
        """Count one that begins, `waited` seconds after it was published."""
        self._in_flight[queue] = self._in_flight.get(queue, 0) + 1
        if waited is not None:
            self._waited.setdefault((queue,), _Spread(WAIT_BUCKETS)).add(max(waited, 0.0))

    def end(self, queue: str, task: str, outcome: str, seconds: float) -> None:
        """Count one that ended."""
        self._in_flight[queue] = self._in_flight.get(queue, 0) - 1
        ran = self._ran.get((queue, task))
        if ran is None:
            ran = self._ran[queue, task] = _Spread(RUN_BUCKETS)
        ran.add(seconds)
        ended = queue, task, outcome
        self._ended[ended] = self._ended.get(ended, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Yield what the series are now."""
        attempts = CounterMetricFamily(
            f"{PREFIX}attempts", "Attempts that ended, by outcome", labels=["queue", "task", "outcome"]
        )
        for labels, number in list(self._ended.items()):
            attempts.add_metric(labels, number)
        in_flight = GaugeMetricFamily(
            f"{PREFIX}in_flight", "Attempts that run at this moment", labels=["queue"]
        )
        for queue, number in list(self._in_flight.items()):
            in_flight.add_metric([queue], number)
        yield attempts
        yield in_flight
        yield GaugeMetricFamily(
            f"{PREFIX}last_commit_timestamp_seconds",
            "When an outcome was last committed, or the worker started",
            value=self.last_commit,
        )
        yield _histogram("run_seconds", "How long attempts ran", ["queue", "task"], self._ran)
        yield _histogram("wait_seconds", "Time from publishing to the first attempt", ["queue"], self._waited)


class _Spread:
    """How many values lie in each bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def _histogram(
    name: str, about: str, labels: Sequence[str], spread_by_labels: Mapping[tuple[str, ...], _Spread]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"{PREFIX}{name}", about, labels=labels)
    for values, spread in list(spread_by_labels.items()):
        bounds = [*map(floatToGoString, spread.bounds), "+Inf"]
        family.add_metric(values, list(zip(bounds, accumulate(spread.counts), strict=True)), spread.total)
    return family

"""Metrics for Prometheus. Every label has few values, whatever publishers send."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from broker_worker.events import (
    AttemptFinished,
    AttemptStarted,
    ConnectionChanged,
    ConsumerChanged,
    DeliverySettled,
    Event,
    LifecycleChanged,
    PublishFailed,
    PublishingBlocked,
    ServiceFailed,
    ServiceWorked,
    TopologyRepaired,
)
from broker_worker.outcome import Cancelled, Dead, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.telemetry.attempt_series import AttemptSeries
from broker_worker.telemetry.server_lines import FOR_PEOPLE

UNKNOWN = "unknown"  # stands for every name that is not ours
HOWS = frozenset(
    {
        "duplicate",
        "refused",
        "put_off",
        "expired",
        "foreign_letter",
        "cancelled",
        "reemitted",
        "adopted",
        "held_elsewhere",
        "stamped",
    }
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What only a look at the servers can tell, as of now."""

    ready_by_queue: Mapping[str, int] = field(default_factory=dict)
    oldest_by_queue: Mapping[str, timedelta] = field(default_factory=dict)  # of the waiting tasks, when due
    open_dead_letters: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by queue and reason
    outbox_rows: int = 0
    outbox_age: timedelta = timedelta(0)  # of the oldest row that is due


class MetricsSubscriber:
    """Counts events, and shows samples. `names` and `queues` are all that labels may say."""

    def __init__(
        self,
        *,
        names: Collection[str],
        queues: Collection[str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._names = frozenset(names)
        self._queues = frozenset(queues)
        self._now = now
        make = _Maker()
        self._registry = make.registry
        self._attempts = AttemptSeries(self._queues, now=now())
        self._registry.register(self._attempts)
        self._work = _Work(make)
        self._machinery = _Machinery(make)
        self._sampled = _Sampled(make)
        self._show_zeros()

    def __call__(self, event: Event) -> None:  # noqa: C901, PLR0912, PLR0915 - one case per event
        machinery = self._machinery
        match event:
            case AttemptStarted():
                self._attempt_started(event)
            case AttemptFinished():
                self._attempt_finished(event)
            case DeliverySettled():
                self._delivery_settled(event)
            case ConnectionChanged(link=link, is_up=is_up):
                machinery.connection_up.labels(link).set(is_up)
            case ConsumerChanged(queue=queue, is_up=is_up, code=code):
                machinery.consumer_up.labels(queue).set(is_up)  # ours all, those of dead letters as well
                if not is_up:
                    machinery.consumer_losses.labels(queue, _code(code)).inc()
            case PublishingBlocked(is_blocked=is_blocked):
                machinery.publishing_blocked.set(is_blocked)
            case TopologyRepaired():
                machinery.topology_repairs.inc()
            case ServiceFailed(service=service):
                machinery.service_failures.labels(service).inc()
            case ServiceWorked(service=service, what=what, count=count):
                machinery.service_rows.labels(service, what).inc(count)
            case PublishFailed(kind=kind):
                machinery.publish_failures.labels(str(kind)).inc()
            case LifecycleChanged(phase=phase):
                machinery.serving.set(phase == "serving")

    def observe(self, sample: Sample) -> None:
        """Show a sample. What was in the last one and is not in this one becomes 0."""
        sampled = self._sampled
        _show(sampled.queue_ready, self._by_queue(sample.ready_by_queue.items()))
        ages = ((queue, age.total_seconds()) for queue, age in sample.oldest_by_queue.items())
        _show(sampled.oldest_waiting, self._by_queue(ages, combine=max))
        _show(sampled.open_dead_letters, self._by_queue_and_reason(sample.open_dead_letters))
        sampled.outbox_rows.set(sample.outbox_rows)
        sampled.outbox_age.set(sample.outbox_age.total_seconds())
        sampled.last_sample.set(self._now())

    def exposition(self) -> bytes:
        """Write everything in Prometheus' text format. Safe to call from any thread."""
        return generate_latest(self._registry)

    def _show_zeros(self) -> None:
        """Alerts need series that exist before anything happens."""
        for queue in self._queues:
            self._machinery.consumer_up.labels(queue).set(0)
            for code in FOR_PEOPLE:
                self._machinery.consumer_losses.labels(queue, str(code))
            self._work.duplicates.labels(queue)

    def _attempt_started(self, event: AttemptStarted) -> None:
        waited = event.waited.total_seconds() if event.waited is not None else None
        self._attempts.begin(self._queue(event.task.queue), waited)

    def _attempt_finished(self, event: AttemptFinished) -> None:
        queue, name = self._queue(event.task.queue), self._name(event.task.name)
        word = outcome_word(event.outcome) if event.is_recorded else "claim_lost"
        self._attempts.end(queue, name, word, event.seconds)
        if not event.is_recorded:
            return
        self._attempts.last_commit = self._now()
        if isinstance(event.outcome, Postponed):
            self._work.retries.labels(queue, name).inc()
        elif isinstance(event.outcome, Dead):
            self._work.dead.labels(queue, name, event.outcome.reason).inc()

    def _delivery_settled(self, event: DeliverySettled) -> None:
        work = self._work
        queue = self._queue(event.queue)
        work.settled.labels(queue, event.how if event.how in HOWS else "other").inc()
        if event.how == "duplicate":
            work.duplicates.labels(queue).inc()
        elif event.how == "refused":
            work.dead.labels(queue, self._name(event.name), _reason(event.detail)).inc()

    def _queue(self, queue: str) -> str:
        return queue if queue in self._queues else UNKNOWN

    def _name(self, name: str | None) -> str:
        return name if name in self._names else UNKNOWN

    def _by_queue(
        self, items: Iterable[tuple[str, float]], combine: Callable[[float, float], float] = float.__add__
    ) -> dict[tuple[str, ...], float]:
        shown: dict[tuple[str, ...], float] = {(queue,): 0.0 for queue in self._queues}
        for queue, value in items:
            labels = (self._queue(queue),)
            shown[labels] = combine(shown.get(labels, 0.0), float(value))
        return shown

    def _by_queue_and_reason(self, counts: Mapping[tuple[str, str], int]) -> dict[tuple[str, ...], float]:
        shown: Tally[tuple[str, ...]] = Tally()
        for (queue, reason), count in counts.items():
            shown[self._queue(queue), _reason(reason)] += count
        return {labels: float(count) for labels, count in shown.items()}


class _Maker:
    """Makes metrics in one registry, all with the same beginning."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, of no use
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"broker_worker_{name}", help_text, labels, registry=self.registry)

    def gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"broker_worker_{name}", help_text, labels, registry=self.registry)


class _Work:
    """What becomes of deliveries and tasks, beside their attempts."""

    def __init__(self, make: _Maker) -> None:
        counter = make.counter
        self.retries = counter("retries", "Attempts that failed and will be repeated", "queue", "task")
        self.dead = counter("dead", "Tasks and messages that became dead letters", "queue", "task", "reason")
        self.settled = counter("settled", "Deliveries acked without a run, by what they were", "queue", "how")
        self.duplicates = counter("duplicates", "Deliveries of tasks that needed no more work", "queue")


class _Machinery:
    """How the daemon itself is."""

    def __init__(self, make: _Maker) -> None:
        self.serving = make.gauge("serving", "1 while the worker is neither starting nor stopping")
        self.consumer_up = make.gauge("consumer_up", "1 while the broker knows our consumer", "queue")
        self.consumer_losses = make.counter(
            "consumer_losses",
            "How often a consumer was found lost, by the broker's reply code",
            "queue",
            "code",
        )
        self.publishing_blocked = make.gauge("publishing_blocked", "1 while the broker takes no publishes")
        self.connection_up = make.gauge("connection_up", "1 while a connection stands", "link")
        self.publish_failures = make.counter("publish_failures", "Publishes to be tried again", "kind")
        self.service_failures = make.counter(
            "service_failures", "Failed turns of background services", "service"
        )
        self.service_rows = make.counter("service_rows", "What background services did", "service", "what")
        self.topology_repairs = make.counter("topology_repairs", "Exchanges and queues declared again")


class _Sampled:
    """What only a look at the servers can tell."""

    def __init__(self, make: _Maker) -> None:
        self.queue_ready = make.gauge("queue_ready", "Messages waiting in the broker", "queue")
        self.oldest_waiting = make.gauge("oldest_waiting_seconds", "How long the oldest task is due", "queue")
        self.open_dead_letters = make.gauge("open_dead_letters", "Dead letters for people", "queue", "reason")
        self.outbox_rows = make.gauge("outbox_rows", "Messages owed to the broker")
        self.outbox_age = make.gauge("outbox_oldest_seconds", "How long the oldest of them is due")
        self.last_sample = make.gauge("sample_timestamp_seconds", "When the sampled gauges were last set")


def outcome_word(outcome: Outcome) -> str:
    """Name an outcome for people: a label, a word in a log line."""
    match outcome:
        case Succeeded():
            return "succeeded"
        case Postponed():
            return "failed"
        case Dead():
            return "dead"
        case Cancelled():
            return "cancelled"
        case Released():
            return "released"


def _code(code: int | None) -> str:
    return "none" if code is None else str(code)


def _reason(text: str) -> str:
    return text if text in set(Reason) else UNKNOWN


def _show(gauge: Gauge, value_by_labels: Mapping[tuple[str, ...], float]) -> None:
    """Set every series anew; none vanishes, for an alert on it would never resolve."""
    shown = {tuple(sample.labels.values()) for metric in gauge.collect() for sample in metric.samples}
    for labels in shown - value_by_labels.keys():
        gauge.labels(*labels).set(0)
    for labels, value in value_by_labels.items():
        gauge.labels(*labels).set(value)

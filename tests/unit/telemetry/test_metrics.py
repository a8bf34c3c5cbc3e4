from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker_worker.events import (
    AttemptFinished,
    AttemptStarted,
    ConnectionChanged,
    ConsumerChanged,
    DeliverySettled,
    LifecycleChanged,
    PublishFailed,
    PublishingBlocked,
    ServiceFailed,
    ServiceWorked,
    TopologyRepaired,
)
from broker_worker.message import TaskId
from broker_worker.outcome import Cancelled, Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.telemetry.metrics import MetricsSubscriber, Sample

TASK = TaskId("email", "email.send", "m-1")
FAILURE = Failure("OSError")


class Series(dict[tuple[str, ...], float]):
    """Samples by name, without our prefix, and the values of the labels in any order."""

    def __getitem__(self, key: tuple[str, ...]) -> float:
        return super().__getitem__((key[0], *sorted(key[1:])))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and super().__contains__((key[0], *sorted(key[1:])))


@pytest.fixture
def metrics() -> MetricsSubscriber:
    return MetricsSubscriber(names=["email.send"], queues=["email", "reports"], now=lambda: 1234.0)


def series(metrics: MetricsSubscriber) -> Series:
    return Series(_samples(metrics.exposition().decode()))


def _samples(text: str) -> Iterator[tuple[tuple[str, ...], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield (
                (
                    sample.name.removeprefix("broker_worker_"),
                    *sorted(sample.labels.values()),
                ),
                sample.value,
            )


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Succeeded(), "succeeded"),
        (Postponed(timedelta(1), FAILURE), "failed"),
        (Dead(Reason.TIMEOUT, FAILURE), "dead"),
        (Cancelled(), "cancelled"),
        (Released(), "released"),
    ],
)
def test_an_attempt_is_counted_by_queue_task_and_outcome(
    metrics: MetricsSubscriber, outcome: Outcome, word: str
) -> None:
    metrics(AttemptStarted(TASK, 1, timedelta(seconds=2)))
    during = series(metrics)
    metrics(AttemptFinished(TASK, 1, outcome, 0.3))

    after = series(metrics)
    assert during["in_flight", "email"] == 1
    assert after["in_flight", "email"] == 0
    assert after["attempts_total", "email", "email.send", word] == 1
    assert after["run_seconds_sum", "email", "email.send"] == 0.3
    assert after["wait_seconds_sum", "email"] == 2
    assert (("retries_total", "email", "email.send") in after) == (word == "failed")
    assert (("dead_total", "email", "email.send", "timeout") in after) == (word == "dead")


def test_an_outcome_that_was_not_recorded_is_a_lost_claim(metrics: MetricsSubscriber) -> None:
    metrics(AttemptFinished(TASK, 1, Dead(Reason.TIMEOUT, FAILURE), 0.3, is_recorded=False))

    assert series(metrics)["attempts_total", "email", "email.send", "claim_lost"] == 1
    assert ("dead_total", "email", "email.send", "timeout") not in series(metrics)


def test_a_hundred_thousand_unknown_names_are_one_series(metrics: MetricsSubscriber) -> None:
    def some_of_each(number: int) -> None:
        task = TaskId(f"q{number}", f"n{number}", "m")
        metrics(AttemptStarted(task, 1, timedelta(0)))
        metrics(AttemptFinished(task, 1, Succeeded(), 0.1))
        metrics(DeliverySettled(f"q{number}", f"n{number}", "m", "refused", f"reason {number}"))
        metrics(DeliverySettled(f"q{number}", f"n{number}", "m", f"how {number}"))
        metrics.observe(
            Sample(
                ready_by_queue={f"q{number}": 1},
                oldest_by_queue={f"q{number}": timedelta(1)},
                open_dead_letters={(f"q{number}", f"r{number}"): 1},
            )
        )

    some_of_each(0)
    before = series(metrics).keys()
    for number in range(1, 1000):
        some_of_each(number)

    assert series(metrics).keys() == before
    assert series(metrics)["attempts_total", "unknown", "unknown", "succeeded"] == 1000
    assert series(metrics)["dead_total", "unknown", "unknown", "unknown"] == 1000


def test_deliveries_that_need_no_run_are_counted_by_what_they_were(metrics: MetricsSubscriber) -> None:
    metrics(DeliverySettled("email", "email.send", "m", "duplicate"))
    metrics(DeliverySettled("email", "email.send", "m", "refused", "invalid_payload"))

    found = series(metrics)
    assert found["settled_total", "email", "duplicate"] == 1
    assert found["settled_total", "email", "refused"] == 1
    assert found["duplicates_total", "email"] == 1
    assert found["dead_total", "email", "email.send", "invalid_payload"] == 1


def test_the_machinery_shows_how_it_is(metrics: MetricsSubscriber) -> None:
    metrics(ConnectionChanged("publish", is_up=True))
    metrics(ConnectionChanged("consume", is_up=True))
    metrics(ConnectionChanged("consume", is_up=False))
    metrics(ConsumerChanged("email", is_up=True))
    metrics(ConsumerChanged("bw.dead.email", is_up=True))
    metrics(PublishFailed("copy", "email", "returned"))
    metrics(ServiceFailed("relay", OSError()))
    metrics(ServiceWorked("rescuer", "rescued", 3))
    metrics(TopologyRepaired("bw.q.email"))
    metrics(LifecycleChanged("serving"))

    found = series(metrics)
    assert found["connection_up", "publish"] == 1
    assert found["connection_up", "consume"] == 0
    assert found["consumer_up", "email"] == 1
    assert found["consumer_up", "reports"] == 0
    assert found["consumer_up", "bw.dead.email"] == 1
    assert found["publish_failures_total", "copy"] == 1
    assert found["service_failures_total", "relay"] == 1
    assert found["service_rows_total", "rescuer", "rescued"] == 3
    assert found["topology_repairs_total",] == 1
    assert found["serving",] == 1


def test_lost_consumers_are_counted_by_the_brokers_code(metrics: MetricsSubscriber) -> None:
    metrics(ConsumerChanged("reports", is_up=False, code=406))
    metrics(ConsumerChanged("reports", is_up=False))

    found = series(metrics)
    assert found["consumer_losses_total", "406", "reports"] == 1
    assert found["consumer_losses_total", "none", "reports"] == 1
    assert found["consumer_losses_total", "403", "email"] == 0  # it is there before anything happens


def test_it_shows_that_the_broker_takes_no_publishes(metrics: MetricsSubscriber) -> None:
    metrics(PublishingBlocked(is_blocked=True, reason="low on memory"))
    during = series(metrics)
    metrics(PublishingBlocked(is_blocked=False))

    assert (during["publishing_blocked",], series(metrics)["publishing_blocked",]) == (1, 0)


def test_a_worker_that_drains_is_not_serving(metrics: MetricsSubscriber) -> None:
    metrics(LifecycleChanged("serving"))
    metrics(LifecycleChanged("draining"))

    assert series(metrics)["serving",] == 0


def test_a_sample_replaces_the_one_before(metrics: MetricsSubscriber) -> None:
    first = Sample(
        ready_by_queue={"email": 7, "elsewhere": 1, "another": 2},
        oldest_by_queue={"email": timedelta(minutes=1)},
        open_dead_letters={("email", "timeout"): 2, ("reports", "gave_up"): 1},
        outbox_rows=4,
        outbox_age=timedelta(seconds=9),
    )
    metrics.observe(first)
    shown = series(metrics)
    metrics.observe(Sample(open_dead_letters={("email", "timeout"): 1}))

    after = series(metrics)
    assert shown["queue_ready", "email"] == 7
    assert shown["queue_ready", "unknown"] == 3
    assert shown["oldest_waiting_seconds", "email"] == 60
    assert shown["open_dead_letters", "reports", "gave_up"] == 1
    assert (shown["outbox_rows",], shown["outbox_oldest_seconds",]) == (4, 9)
    assert shown["sample_timestamp_seconds",] == 1234
    assert after["queue_ready", "email"] == 0
    assert after["open_dead_letters", "email", "timeout"] == 1
    assert after["open_dead_letters", "reports", "gave_up"] == 0


def test_two_workers_in_a_process_count_apart(metrics: MetricsSubscriber) -> None:
    other = MetricsSubscriber(names=[], queues=["email"])

    metrics(TopologyRepaired("x"))

    assert series(other)["topology_repairs_total",] == 0

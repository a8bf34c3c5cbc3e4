from datetime import timedelta

import pytest

from broker_worker.errors import StoreUnavailableError
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
from broker_worker.message import TaskId
from broker_worker.outcome import Cancelled, Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.telemetry.log_subscriber import LogSubscriber
from tests.unit.telemetry.conftest import Lines

TASK = TaskId("email", "email.send", "m-1")
FAILURE = Failure("OSError", "no route", "Traceback (most recent call last):\n  here", "f" * 16)


def finished(outcome: Outcome, *, is_recorded: bool = True) -> AttemptFinished:
    return AttemptFinished(TASK, 2, outcome, 0.25, is_recorded)


SHOWN: list[tuple[Event, str, str]] = [
    (AttemptStarted(TASK, 1, None), "debug", "attempt started"),
    (finished(Succeeded("{}")), "debug", "task succeeded"),
    (finished(Postponed(timedelta(seconds=5), FAILURE)), "warning", "attempt failed"),
    (finished(Dead(Reason.GAVE_UP, FAILURE)), "error", "task dead"),
    (finished(Cancelled()), "info", "task cancelled"),
    (finished(Released()), "debug", "task released"),
    (finished(Succeeded(), is_recorded=False), "warning", "claim lost, outcome dropped"),
    (
        DeliverySettled("email", "email.send", "m-1", "duplicate"),
        "debug",
        "delivery settled without a run",
    ),
    (
        DeliverySettled("email", None, None, "refused", "malformed"),
        "error",
        "delivery refused, task dead",
    ),
    (
        DeliverySettled("email", "x", "m", "put_off", "unknown_task"),
        "warning",
        "delivery settled without a run",
    ),
    (ConnectionChanged("consume", is_up=True), "info", "connected"),
    (ConnectionChanged("consume", is_up=False, detail="refused"), "warning", "connection lost"),
    (ConsumerChanged("email", is_up=True), "info", "consuming"),
    (ConsumerChanged("email", is_up=False), "warning", "consumer lost"),
    (ConsumerChanged("email", is_up=False, code=404), "warning", "consumer lost"),
    (ConsumerChanged("email", is_up=False, code=403), "error", "consumer lost"),
    (
        PublishingBlocked(is_blocked=True, reason="low on memory"),
        "warning",
        "publishing blocked by the broker",
    ),
    (PublishingBlocked(is_blocked=False), "info", "publishing goes on"),
    (TopologyRepaired("bw.q.email"), "warning", "topology repaired"),
    (ServiceWorked("rescuer", "rescued", 2), "debug", "service worked"),
    (PublishFailed("copy", "email", "returned"), "warning", "publish failed"),
    (LifecycleChanged("starting"), "info", "worker starting"),
    (LifecycleChanged("waiting", "no database"), "warning", "worker waiting for the database"),
    (LifecycleChanged("stopped", "SIGTERM"), "info", "worker stopped"),
]


@pytest.mark.parametrize(("event", "level", "message"), SHOWN, ids=map(str, range(len(SHOWN))))
def test_every_event_has_one_line_of_a_constant_text(
    lines: Lines, event: Event, level: str, message: str
) -> None:
    lines.configure()

    LogSubscriber()(event)

    assert (lines.only["level"], lines.only["message"]) == (level, message)
    assert None not in lines.only.values()
    assert "" not in lines.only.values()


def test_a_dead_task_comes_with_its_traceback_and_a_failed_attempt_without(lines: Lines) -> None:
    lines.configure()
    subscriber = LogSubscriber()

    subscriber(finished(Postponed(timedelta(seconds=5), FAILURE, Reason.TIMEOUT)))
    subscriber(finished(Dead(Reason.GAVE_UP, FAILURE)))

    failed, dead = lines.all
    assert failed | {"timestamp": ""} == {
        "timestamp": "",
        "level": "warning",
        "message": "attempt failed",
        "logger": "broker_worker",
        "task": "email.send",
        "task_id": "m-1",
        "queue": "email",
        "attempt": 2,
        "seconds": 0.25,
        "retry_in_s": 5.0,
        "reason": "timeout",
        "error_type": "OSError",
        "error": "no route",
        "fingerprint": "f" * 16,
    }
    assert dead["exception"] == FAILURE.traceback


def test_what_a_worker_closes_as_it_stops_is_no_warning(lines: Lines) -> None:
    lines.configure()
    subscriber = LogSubscriber()

    subscriber(LifecycleChanged("draining", "SIGTERM"))
    subscriber(ConsumerChanged("email", is_up=False))
    subscriber(ConnectionChanged("consume", is_up=False))

    assert [line["level"] for line in lines.all] == ["info"] * 3
    assert [line["message"] for line in lines.all[1:]] == ["consumer stopped", "connection closed"]


def test_a_result_is_never_shown(lines: Lines) -> None:
    lines.configure()

    LogSubscriber()(finished(Succeeded('{"canary": 1}')))

    assert "canary" not in lines.text


def test_a_server_that_is_away_is_a_warning_and_a_fault_of_ours_an_error(lines: Lines) -> None:
    lines.configure()
    subscriber = LogSubscriber()

    subscriber(ServiceFailed("relay", StoreUnavailableError("refused at postgresql://u:canary@h/d")))
    subscriber(ServiceFailed("relay", missing_key()))

    away, fault = lines.all
    assert (away["level"], away["error_type"]) == ("warning", "StoreUnavailableError")
    assert "exception" not in away
    assert (fault["level"], fault["error_type"]) == ("error", "KeyError")
    assert "Traceback" in fault["exception"]
    assert "canary" not in lines.text


def test_a_summary_counts_since_the_last_one(lines: Lines) -> None:
    lines.configure("info")
    subscriber = LogSubscriber()
    for _ in range(3):
        subscriber(AttemptStarted(TASK, 1, None))
    subscriber(finished(Succeeded()))
    subscriber(finished(Succeeded()))
    subscriber(DeliverySettled("email", "email.send", "m-1", "duplicate"))

    subscriber.summarise()
    subscriber.summarise()

    counts = ("succeeded", "failed", "dead", "duplicates", "in_flight")
    assert [tuple(line[key] for key in counts) for line in lines.all] == [(2, 0, 0, 1, 1), (0, 0, 0, 0, 1)]


def missing_key() -> KeyError:
    empty: dict[str, object] = {}
    try:
        empty["missing"]
    except KeyError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(("shows_tracebacks", "expected"), [(True, FAILURE.traceback), (False, None)])
def test_a_failed_attempt_shows_its_traceback_to_people_only(
    lines: Lines, *, shows_tracebacks: bool, expected: str | None
) -> None:
    lines.configure()
    subscriber = LogSubscriber(shows_tracebacks=shows_tracebacks)

    subscriber(finished(Postponed(timedelta(seconds=5), FAILURE)))

    assert lines.only.get("exception") == expected

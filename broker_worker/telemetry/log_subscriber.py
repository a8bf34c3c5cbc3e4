"""Events as log lines: one event, one line, a constant text, the data in fields."""

from __future__ import annotations

import logging
from collections import Counter

import structlog

from broker_worker.events import (
    AttemptFinished,
    AttemptStarted,
    DeliverySettled,
    Event,
    LifecycleChanged,
    ServiceWorked,
)
from broker_worker.message import TaskId
from broker_worker.outcome import Cancelled, Dead, Failure, Postponed, Released, Succeeded
from broker_worker.telemetry.server_lines import ServerLines, given

LOGGER = "broker_worker"
# Everything else that is settled without a run is daily business, and counted.
LEVEL_BY_HOW = {"refused": logging.ERROR, "put_off": logging.WARNING, "reemitted": logging.WARNING}
MESSAGE_BY_PHASE = {
    "armed": "made to fail on purpose: for tests alone",
    "starting": "worker starting",
    "waiting": "worker waiting for the database",
    "serving": "worker serving",
    "draining": "worker draining",
    "cut_short": "a step of the end was cut short",
    "stopped": "worker stopped",
}
WORRYING_PHASES = frozenset({"armed", "waiting", "cut_short"})


class LogSubscriber:
    """Writes events to the log; `summarise` once a minute writes what passed in silence."""

    def __init__(self, *, shows_tracebacks: bool = False) -> None:
        """Follow `configure`: a logger keeps the processors that it was made with.

        `shows_tracebacks` is for people who read along: of every failed attempt, not of the last alone.
        """
        self._shows_tracebacks = shows_tracebacks
        self._log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(LOGGER).bind()
        self._logger = logging.getLogger(LOGGER)
        self._servers = ServerLines(self._log)
        self._counts: Counter[str] = Counter()
        self._in_flight = 0

    def __call__(self, event: Event) -> None:
        match event:
            case AttemptStarted():
                self._attempt_started(event)
            case AttemptFinished():
                self._attempt_finished(event)
            case DeliverySettled():
                self._delivery_settled(event)
            case ServiceWorked(service=service, what=what, count=count):
                self._log.debug("service worked", service=service, what=what, count=count)
            case LifecycleChanged():
                self._lifecycle_changed(event)
            case _:
                self._servers.write(event)

    def summarise(self) -> None:
        """Write what happened since the last summary. Call it once a minute."""
        counts, self._counts = self._counts, Counter()
        self._log.info(
            "summary",
            succeeded=counts["succeeded"],
            failed=counts["failed"],
            dead=counts["dead"],
            duplicates=counts["duplicates"],
            in_flight=self._in_flight,
        )

    def _attempt_started(self, event: AttemptStarted) -> None:
        self._in_flight += 1
        if not self._is_debugging:
            return
        waited = round(event.waited.total_seconds(), 3) if event.waited is not None else None
        self._log.debug(
            "attempt started",
            **_task(event.task, event.attempt),
            **given(waited_s=waited, trace_id=event.trace_id),
        )

    def _attempt_finished(self, event: AttemptFinished) -> None:
        self._in_flight = max(self._in_flight - 1, 0)
        if isinstance(event.outcome, Succeeded) and event.is_recorded:
            self._counts["succeeded"] += 1
            if not self._is_debugging:
                return
        fields = _task(event.task, event.attempt)
        if event.trace_id:
            fields["trace_id"] = event.trace_id
        fields["seconds"] = round(event.seconds, 3)
        match event.outcome:
            case outcome if not event.is_recorded:
                lost = type(outcome).__name__.lower()
                self._log.warning("claim lost, outcome dropped", **fields, outcome=lost)
            case Postponed() as outcome:
                self._attempt_failed(fields, outcome)
            case outcome:
                self._outcome_recorded(self._log.bind(**fields), outcome)

    def _attempt_failed(self, fields: dict[str, object], outcome: Postponed) -> None:
        """Hand the line to the standard library at once: by structlog it costs half of all the rest more.

        Nothing of structlog's own context is in it; an event is emitted outside of any.
        When a service is down, every attempt of every task writes one.
        """
        self._counts["failed"] += 1
        if not self._logger.isEnabledFor(logging.WARNING):
            return
        failure = outcome.failure
        line = {**fields, "retry_in_s": round(outcome.delay.total_seconds(), 3)}
        if outcome.reason is not None:
            line["reason"] = outcome.reason
        line |= _failure(failure)
        if self._shows_tracebacks and failure.traceback:
            line["exception"] = failure.traceback
        line["event"] = "attempt failed"
        self._logger.handle(
            self._logger.makeRecord(
                LOGGER,
                logging.WARNING,
                __file__,
                0,
                line,
                (),
                None,
                extra={"_logger": self._logger, "_name": "warning"},
            )
        )

    def _outcome_recorded(
        self, log: structlog.stdlib.BoundLogger, outcome: Succeeded | Dead | Cancelled | Released
    ) -> None:
        match outcome:
            case Succeeded():
                log.debug("task succeeded")
            case Dead(reason=reason, failure=failure):
                self._counts["dead"] += 1
                traceback = given(exception=failure.traceback)
                log.error("task dead", reason=reason, **_failure(failure), **traceback)
            case Cancelled():
                log.info("task cancelled")
            case Released():
                log.debug("task released")

    @property
    def _is_debugging(self) -> bool:
        """Asked first where a task succeeds: to make a line and drop it would cost more than to count."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def _delivery_settled(self, event: DeliverySettled) -> None:
        if event.how == "duplicate":
            self._counts["duplicates"] += 1
        elif event.how == "refused":
            self._counts["dead"] += 1
        self._log.log(
            LEVEL_BY_HOW.get(event.how, logging.DEBUG),
            "delivery refused, task dead" if event.how == "refused" else "delivery settled without a run",
            queue=event.queue,
            how=event.how,
            **given(task=event.name, task_id=event.task_id, reason=event.detail),
        )

    def _lifecycle_changed(self, event: LifecycleChanged) -> None:
        self._servers.is_draining |= event.phase == "draining"
        level = logging.WARNING if event.phase in WORRYING_PHASES else logging.INFO
        message = MESSAGE_BY_PHASE.get(event.phase, "worker changed")
        self._log.log(level, message, phase=event.phase, **given(detail=event.detail))


def _task(task: TaskId, attempt: int) -> dict[str, object]:
    return {"task": task.name, "task_id": task.id, "queue": task.queue, "attempt": attempt}


def _failure(failure: Failure) -> dict[str, object]:
    return {
        "error_type": failure.error_type,
        **given(error=failure.message, fingerprint=failure.fingerprint),
    }

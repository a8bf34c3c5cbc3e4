"""What people and probes see of a daemon: logs, metrics, health."""

from __future__ import annotations

import sys
from collections.abc import Collection

from broker_worker.context import task_fields
from broker_worker.events import (
    AttemptFinished,
    AttemptStarted,
    ConnectionChanged,
    ConsumerChanged,
    Event,
    LifecycleChanged,
)
from broker_worker.settings import Settings
from broker_worker.telemetry.health import Check, Health, HealthServer, Probes
from broker_worker.telemetry.log_subscriber import LogSubscriber
from broker_worker.telemetry.logs import configure, is_console
from broker_worker.telemetry.metrics import MetricsSubscriber
from broker_worker.telemetry.watchdog import Watchdog


class Observation:
    """Takes every event of the daemon. Begin with `start`, before anything can happen."""

    def __init__(self, settings: Settings, *, names: Collection[str]) -> None:
        """`names` are the registered tasks: no other name becomes a label."""
        urls = (settings.amqp_url, settings.database_url, settings.database_direct_url)
        redactor = configure(
            settings.log_level,
            log_format=settings.log_format,
            stream=sys.stdout,
            task_fields=task_fields,
        )
        for secret in (*urls, settings.signing_keys):
            secret.follow(redactor.learn)
        self.conceal = redactor.outcome
        self.metrics = MetricsSubscriber(names=names, queues=tuple(settings.queues))
        self._watchdog = Watchdog()
        self.health = Health(
            redactor=redactor,
            standing=lambda: self._watchdog.standing,
            blocked_loop_limit=settings.blocked_loop_limit,
        )
        self.logs = LogSubscriber(shows_tracebacks=is_console(settings.log_format, sys.stdout))
        self._is_up: dict[tuple[Check, str], bool] = {}
        self._server: HealthServer | None = None
        if settings.http_bind is not None:
            probes = Probes(self.health, self.metrics.exposition)
            self._server = HealthServer(settings.http_bind.host, settings.http_bind.port, probes=probes)

    def start(self) -> None:
        """Serve the probes, and watch the running event loop.

        Raises:
            ConfigurationError: the address can't be had.
        """
        if self._server is not None:
            self._server.start()
        self._watchdog.start()

    def stop(self) -> None:
        """End the probes and the watch."""
        self._watchdog.stop()
        if self._server is not None:
            self._server.stop()

    def emit(self, event: Event) -> None:
        """Log, count, and keep the health up to date."""
        self.logs(event)
        self.metrics(event)
        match event:
            case AttemptStarted() | AttemptFinished():
                pass
            case ConnectionChanged(link="database", is_up=is_up, detail=detail):
                self._note(Check.DATABASE, "database", is_up=is_up, detail=detail)
            case ConnectionChanged(link="listen"):
                pass  # only saves time: the daemon polls as well
            case ConnectionChanged(link=link, is_up=is_up, detail=detail):
                self._note(Check.BROKER, link, is_up=is_up, detail=detail)
            case ConsumerChanged(queue=queue, is_up=is_up, detail=detail):
                self._note(Check.CONSUMERS, queue, is_up=is_up, detail=detail)
            case LifecycleChanged(phase=phase, detail=detail):
                self._enter(phase, detail)
            case _:
                pass

    async def summarise(self) -> None:
        """Write the summary line."""
        self.logs.summarise()

    def expect(self, links: Collection[str], consumers: Collection[str]) -> None:
        """Name what has to be up for the daemon to be ready."""
        self._is_up |= {(Check.BROKER, link): False for link in links}
        self._is_up |= {(Check.CONSUMERS, queue): False for queue in consumers}

    def _enter(self, phase: str, detail: str) -> None:
        match phase:
            case "starting":
                self.health.mark_started()  # what it waits for is readiness; a restart would not bring it
            case "waiting":
                self.health.set(Check.DATABASE, ok=False, detail=detail)
            case "serving":
                self.health.set(Check.SCHEMA, ok=True)
            case "draining":
                self.health.set(Check.DRAINING, ok=False, detail="the daemon is stopping")
            case _:
                pass

    def _note(self, check: Check, what: str, *, is_up: bool, detail: str) -> None:
        """One of several is up or down: the check is ok when all of them are up."""
        self._is_up[check, what] = is_up
        down = [name for (kind, name), up in self._is_up.items() if kind is check and not up]
        self.health.set(check, ok=not down, detail=f"{', '.join(down)}: {detail}" if down else "")

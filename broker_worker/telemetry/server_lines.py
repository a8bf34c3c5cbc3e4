"""Lines about servers that come and go. What is away for an hour is said sixty times, not ten thousand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import structlog

from broker_worker.errors import UnavailableError
from broker_worker.events import (
    ConnectionChanged,
    ConsumerChanged,
    PublishFailed,
    PublishingBlocked,
    ServiceFailed,
    TopologyRepaired,
)
from broker_worker.telemetry.throttle import Throttle

FLAPS = 3  # losses of one connection or consumer in a minute that are shown
FAULTS = 10  # errors of one type in a minute that are shown with their traceback
FOR_PEOPLE = frozenset({403, 405, 406})  # reply codes that people have to hear of at once

ServerEvent = (
    ConnectionChanged | ConsumerChanged | PublishingBlocked | TopologyRepaired | PublishFailed | ServiceFailed
)


class ServerLines:
    """Writes them. What is held back is written at the level debug."""

    def __init__(
        self, log: structlog.stdlib.BoundLogger, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._throttle = Throttle(monotonic=monotonic)
        self._is_shown_up: dict[tuple[str, str], bool] = {}
        self.is_draining = False

    def write(self, event: ServerEvent) -> None:  # noqa: C901 - one case per event
        """Write a line for an event."""
        match event:
            case ConnectionChanged(link=link, is_up=is_up, detail=detail):
                gone = "connection closed" if self.is_draining else "connection lost"
                self._come_or_go("link", link, ("connected", gone), is_up=is_up, detail=detail)
            case ConsumerChanged(queue=queue, is_up=is_up, detail=detail, code=code):
                gone = "consumer stopped" if self.is_draining else "consumer lost"
                words = "consuming", gone
                self._come_or_go("queue", queue, words, is_up=is_up, detail=detail, code=code)
            case PublishingBlocked(is_blocked=True, reason=reason):
                self._log.warning("publishing blocked by the broker", **given(reason=reason))
            case PublishingBlocked():
                self._log.info("publishing goes on")
            case TopologyRepaired(what=what):
                self._log.warning("topology repaired", what=what)
            case PublishFailed(kind=kind, routing_key=key, error=error):
                fields = {"kind": str(kind), "routing_key": key, "error": error}
                self._seldom(logging.WARNING, "publish failed", (str(kind), error), fields)
            case ServiceFailed(service=service, error=UnavailableError() as error):
                shown = {"service": service, "error": error, "error_type": type(error).__name__}
                self._seldom(logging.WARNING, "service failed", type(error), shown)
            case ServiceFailed(service=service, error=error):
                # a fault of ours: of each kind a few, because each delivery under way may meet it
                shown = {"service": service, "exc_info": error}
                self._seldom(logging.ERROR, "service failed", (service, type(error)), shown, most=FAULTS)

    def _come_or_go(
        self, kind: str, name: str, words: tuple[str, str], *, is_up: bool, **fields: object
    ) -> None:
        """Write that it is up or down; what flaps is held back in pairs, so that the last line is true."""
        subject, shown = (kind, name), {kind: name, **given(**fields)}
        if is_up:
            is_news = self._is_shown_up.get(subject) is not True
            self._log.log(logging.INFO if is_news else logging.DEBUG, words[0], **shown)
            self._is_shown_up[subject] = True
            return
        level = logging.INFO if self.is_draining else logging.WARNING
        if fields.get("code") in FOR_PEOPLE:
            level = logging.ERROR
        if self._seldom(level, words[1], subject, shown, most=FLAPS):
            self._is_shown_up[subject] = False

    def _seldom(
        self, level: int, message: str, key: object, fields: Mapping[str, object], *, most: int = 1
    ) -> bool:
        held_back = self._throttle.admit((message, key), most=most)
        if held_back is None:
            self._log.debug(message, **fields)
            return False
        self._log.log(level, message, **fields, **({"held_back": held_back} if held_back else {}))
        return True


def given(**fields: object) -> dict[str, object]:
    """Leave out what is not known or empty."""
    return {name: value for name, value in fields.items() if value not in (None, "")}

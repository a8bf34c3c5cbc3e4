"""Handlers of a daemon that asks for a fresh process after seconds and not after minutes."""

from __future__ import annotations

from datetime import timedelta

from broker_worker import app
from broker_worker.amqp import patience
from broker_worker.services import guard
from tests.support.handlers import registry

__all__ = ["registry"]

app.GUARD_INTERVAL = timedelta(seconds=1)  # type: ignore[attr-defined]
guard.PATIENCE = timedelta(seconds=12)  # longer than a start takes
# after half a minute a consumer would be tried again before its connection's end is known, and what the
# broker says on the next one is told a minute later
patience.SHORT_LIFE = 3600.0

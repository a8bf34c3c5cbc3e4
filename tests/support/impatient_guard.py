"""Handlers of a daemon that asks for a fresh process after seconds and not after minutes."""

from __future__ import annotations

from datetime import timedelta

from broker_worker import app
from broker_worker.services import guard
from tests.support.handlers import registry

__all__ = ["registry"]

app.GUARD_INTERVAL = timedelta(seconds=1)  # type: ignore[attr-defined]
guard.PATIENCE = timedelta(seconds=12)  # longer than a start takes

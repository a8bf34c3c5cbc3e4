"""The corpus meets the daemon as other messages do."""

from __future__ import annotations

from tests.e2e.conftest import service as service  # noqa: PLC0414 - a fixture

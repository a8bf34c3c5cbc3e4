"""Sockets, pipes and processes are tried on both event loops on which the daemon may run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

# the rest speaks to the loop through these, or not at all
BOTH = ("amqp/", "test_processes.py", "test_tls.py")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if any(part in item.nodeid for part in BOTH):
        loops["uvloop"] = uvloop.new_event_loop
    return loops

"""Handlers that hold up the event loop, as nobody should."""

from __future__ import annotations

import os
import time
from pathlib import Path

from broker_worker import Registry

registry = Registry()


@registry.task("blocks")
async def blocks() -> str:
    wait_for_the_gate()
    return "through"


def wait_for_the_gate() -> None:
    while not Path(os.environ["TEST_GATE"]).exists():
        time.sleep(0.02)

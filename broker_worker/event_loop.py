"""Which event loop the daemon runs on: uvloop's where that is installed, else asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the daemon's loop; `None` stands for asyncio's default.

    There is no setting: both do the same, one faster. Who wants asyncio's installs without the extra.
    """
    try:
        import uvloop  # noqa: PLC0415 - may be missing
    except ImportError:
        return None
    return uvloop.new_event_loop

"""Places where tests make a process die, stop or hang; nothing at all in every other process.

`BROKER_WORKER_FAILPOINT=name:action[:nth]` arms one: at the nth time (default 1) that
the place is passed, the process is killed (`kill`), stopped (`stop`) or hangs (`hang`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

VARIABLE = "BROKER_WORKER_FAILPOINT"


def _disarmed(_: str) -> None:
    """Pass by."""


def _armed(spec: str) -> Callable[[str], None]:
    name, action, nth = [*spec.split(":"), "1"][:3]
    passed = 0

    def hit(place: str) -> None:
        nonlocal passed
        if place != name:
            return
        passed += 1
        if passed == int(nth):
            _act(action)

    return hit


def _act(action: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(3600)
        case _:
            raise ValueError(f"{VARIABLE}: {action!r} is not kill, stop or hang")


hit: Callable[[str], None] = _armed(os.environ[VARIABLE]) if VARIABLE in os.environ else _disarmed

"""How a runner of a peer turns into the command line that the peer's documentation starts workers with."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def become(*words: str) -> NoReturn:
    """Replace this process by `python -m <words>`, so that SIGTERM reaches the peer itself."""
    os.execv(sys.executable, [sys.executable, "-m", *words])  # noqa: S606 - the words are the runners' own

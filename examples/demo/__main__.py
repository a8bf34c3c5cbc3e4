"""Run the demo: exit 0 if everything adds up, 1 if not, 130 after Ctrl-C."""

from __future__ import annotations

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130


def main() -> int:
    """Give the performance."""
    for number in SIGNALS:
        signal.signal(number, interrupt_once)
    try:
        # here, because importing takes a second, in which Ctrl-C is an end like any other
        from examples.demo.conductor import perform  # noqa: PLC0415

        return 0 if perform() else 1
    except KeyboardInterrupt:
        print("interrupted; everything has been stopped")
        return INTERRUPTED


def interrupt_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is signal's
    """Let nothing disturb the tidying up that the first signal begins."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

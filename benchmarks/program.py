"""What the runners have in common. Standard library only: peers import it as well."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Order:
    """What the environment says about this run; see benchmarks/contestant.py."""

    amqp_url: str
    database_url: str
    queue: str
    messages: int
    size: int

    @classmethod
    def given(cls) -> Order:
        """Read it."""
        return cls(
            os.environ["BENCH_AMQP_URL"],
            os.environ["BENCH_DATABASE_URL"],
            os.environ["BENCH_QUEUE"],
            int(os.environ["BENCH_MESSAGES"]),
            int(os.environ["BENCH_SIZE"]),
        )


async def stopped() -> None:
    """Wait for SIGTERM. Call it once."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, event.set)
    await event.wait()


def asked_to() -> str:
    """Return the one argument, `fill` or `work`."""
    (verb,) = sys.argv[1:]
    if verb not in {"fill", "work"}:
        raise SystemExit(f"fill or work, not {verb}")
    return verb


def run(main: Callable[[Order], Coroutine[object, object, None]]) -> None:
    """Run `main` on asyncio's loop, or on uvloop where BENCH_UVLOOP is 1."""
    if os.environ.get("BENCH_UVLOOP") == "1":
        import uvloop  # noqa: PLC0415 - only where it is asked for

        uvloop.run(main(Order.given()))
    else:
        asyncio.run(main(Order.given()))

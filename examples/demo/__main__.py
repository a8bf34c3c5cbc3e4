"""Run the demo: exit 0 if everything adds up, 1 if not, 130 after Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import asyncpg
from rich.console import Console

from broker_worker.local import LocalServerError, local_servers
from examples.demo.conductor import conduct
from examples.demo.materials import make_materials
from examples.demo.processes import ProcessFailedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WIDTH_OF_A_PIPE = 130
INTERRUPTED = 130


def main() -> int:
    """Set up, perform, take everything away again."""
    for number in SIGNALS:
        signal.signal(number, interrupt_once)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_PIPE)
    try:
        return 0 if perform(console) else 1
    except KeyboardInterrupt:
        console.print("interrupted; everything has been stopped")
        return INTERRUPTED
    except (LocalServerError, ProcessFailedError, asyncpg.DuplicateSchemaError) as error:
        console.print(f"demo: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1


def interrupt_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is signal's
    """Let nothing disturb the tidying up that the first signal begins."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def perform(console: Console) -> bool:
    """Have servers and a folder for as long as it takes; whether everything adds up."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="broker-worker-demo-") as name:
        folder = Path(name)
        console.print("starting a RabbitMQ and a Postgres of our own…")
        with local_servers() as servers:
            console.print(servers.how, highlight=False)
            make_materials(folder)
            adds_up = asyncio.run(conduct(console, servers, folder))
    verdict = "everything is accounted for" if adds_up else "THIS DOES NOT ADD UP"
    console.print(
        f"{verdict}; {time.monotonic() - began:.0f} s in all, everything has been stopped", highlight=False
    )
    return adds_up


if __name__ == "__main__":
    sys.exit(main())

"""Handlers that say what they should not: the passwords and addresses that their worker was started with."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker_worker import Context, GiveUp, Registry

registry = Registry()

for library in ("aiormq", "aio_pika", "pamqp", "asyncpg", "sqlalchemy", "asyncio"):
    logging.getLogger(library).setLevel(logging.DEBUG)  # as somebody does who looks for a fault


def addresses() -> list[str]:
    """The URLs of both servers, from wherever the worker has them."""
    variables = {name: os.environ.get(f"BROKER_WORKER_{name}", "") for name in ("AMQP_URL", "DATABASE_URL")}
    files = [os.environ.get(f"BROKER_WORKER_{name}_FILE") for name in variables]
    return [*filter(None, variables.values()), *(Path(file).read_text() for file in files if file)]


def passwords() -> list[str]:
    return [unquote(urlsplit(address).password or "") for address in addresses()]


@registry.task("tells_in_its_error", max_attempts=2)
async def tells_in_its_error() -> None:
    cause = ValueError(f"access denied for {passwords()}")
    cause.add_note(f"it was {passwords()[0]}")
    raise ConnectionError(f"can't connect to {' or '.join(addresses())}") from cause


@registry.task("tells_at_length")
async def tells_at_length(spaces: int) -> None:
    # where the text of an error is cut, half of the password would be left
    raise GiveUp(" " * spaces + addresses()[0] + " " * 5000)


@registry.task("tells_in_the_log")
async def tells_in_the_log(context: Context) -> None:
    for name in ("app", "aiormq.connection", "asyncpg.pool", "sqlalchemy.engine"):
        log = logging.getLogger(name)
        log.error("connecting to %s with %r", addresses(), passwords(), extra={"dsn": addresses()[0]})
        log.debug("password: %s", passwords()[0])
        try:
            raise ValueError(passwords()[0])  # noqa: TRY301 - for its traceback
        except ValueError:
            log.exception("it did not work")


@registry.task("tells_from_a_process", process=True)
def tells_from_a_process(given: str) -> dict[str, list[str]]:
    if given:
        raise GiveUp(f"can't connect to {given}")
    inherited = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout.splitlines()
    held = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return {
        "environment": [line for line in inherited if "BROKER_WORKER" in line.upper()],
        "command": [*sys.orig_argv],
        "sockets": [target for target in held if target.startswith("socket:")],
    }

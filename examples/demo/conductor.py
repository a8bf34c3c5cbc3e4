"""The order of things: set up, migrate, declare, run, publish, watch, stop, account."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
from rich.console import Console

from broker_worker.local import LocalServerError, Servers, local_servers
from broker_worker.local.network import free_ports
from examples.demo.accounting import Identity, Published, is_settled, problems, totals
from examples.demo.facts import (
    SALES,
    Books,
    count_duplicates,
    effects,
    is_ready,
    left_in_queues,
)
from examples.demo.materials import make_materials
from examples.demo.processes import Child, ProcessFailedError, child
from examples.demo.sinks import LOOPBACK, Mailbox, Receiver, mail_server, webhook_server
from examples.demo.view import Progress, letters_table, progress, show_outside, show_result, slowest_table

CHECKOUT = Path(__file__).parents[2]
PUBLISHER = Path(__file__).with_name("publisher.py")
COMMAND = Path(sys.executable).with_name("broker-worker")
QUEUES = {"default": 16, "media": 4, "email": 8, "webhook": 8}
RUNGS_MS = (1000, 2000, 3000, 4000)  # as far as RETRY_MAX_DELAY goes
OUTAGE = 5.0  # seconds for which webhooks are answered with 503
SECONDS_FOR_A_COMMAND = 60.0
SECONDS_TO_BE_READY = 60.0
SECONDS_TO_WORK = 60.0
SECONDS_TO_STOP = 15.0
SECONDS_BETWEEN_LOOKS = 0.2
SLOWEST = 6
WIDTH_OF_A_PIPE = 130


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything is."""

    servers: Servers
    folder: Path
    books: Books
    daemon: Child
    health: str  # host:port of the daemon's probes and metrics
    mailbox: Mailbox
    receiver: Receiver


def perform() -> bool:
    """Set up, work, take everything away again; whether everything adds up."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_PIPE)
    began = time.monotonic()
    try:
        adds_up = on_own_servers(console)
    except (LocalServerError, ProcessFailedError, asyncpg.DuplicateSchemaError) as error:
        console.print(f"demo: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return False
    verdict = "everything is accounted for" if adds_up else "this does not add up"
    seconds = time.monotonic() - began
    console.print(f"{verdict}; {seconds:.0f} s in all, everything has been stopped", highlight=False)
    return adds_up


def on_own_servers(console: Console) -> bool:
    """Have servers and a folder for as long as the performance takes."""
    with TemporaryDirectory(prefix="broker-worker-demo-") as name:
        folder = Path(name)
        console.print("starting a RabbitMQ and a Postgres of our own…")
        with local_servers() as servers:
            console.print(servers.how, highlight=False)
            make_materials(folder)
            return asyncio.run(conduct(console, servers, folder))


async def conduct(console: Console, servers: Servers, folder: Path) -> bool:
    """Give the whole performance; whether everything adds up.

    Raises:
        ProcessFailedError: one of the processes did not do its part.
    """
    mailbox, receiver = Mailbox(), Receiver(OUTAGE)
    async with AsyncExitStack() as running:
        connection = await asyncpg.connect(servers.database_url)
        running.push_async_callback(connection.close)
        await connection.execute(SALES)
        smtp = await running.enter_async_context(mail_server(mailbox))
        webhook_url = running.enter_context(webhook_server(receiver))
        environment = worker_environment(servers, folder, smtp=smtp, webhook_url=webhook_url)
        for words in (["migrate"], ["topology", "apply"]):
            await run_command(console, words, environment, folder)
        daemon = running.enter_context(worker(environment, folder))
        health = environment["BROKER_WORKER_HTTP_BIND"]
        stage = Stage(servers, folder, Books(connection), daemon, health, mailbox, receiver)
        await wait_until_ready(console, stage)
        return await account(console, stage, await work(console, stage))


def worker_environment(servers: Servers, folder: Path, *, smtp: str, webhook_url: str) -> dict[str, str]:
    """Everything that the worker gets to know."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    return {
        **inherited,
        "PYTHONPATH": str(CHECKOUT),  # of the handlers
        "BROKER_WORKER_AMQP_URL": servers.amqp_url,
        "BROKER_WORKER_DATABASE_URL": servers.database_url,
        "BROKER_WORKER_ALLOW_INSECURE": "true",  # throwaway servers; Docker's may have another address
        "BROKER_WORKER_HANDLERS": "examples.demo.handlers",
        "BROKER_WORKER_QUEUES": ",".join(f"{name}:{width}" for name, width in QUEUES.items()),
        "BROKER_WORKER_MAX_ATTEMPTS": "5",
        "BROKER_WORKER_RETRY_DELAY": "1s",
        "BROKER_WORKER_RETRY_MAX_DELAY": "4s",
        "BROKER_WORKER_UNKNOWN_TASK_GRACE": "3s",
        "BROKER_WORKER_MAX_BODY_BYTES": "64KiB",
        "BROKER_WORKER_SHUTDOWN_GRACE": "3s",
        "BROKER_WORKER_HTTP_BIND": f"{LOOPBACK}:{free_ports(1)[0]}",
        "DEMO_DATABASE_URL": servers.database_url,
        "DEMO_FOLDER": str(folder),
        "DEMO_SMTP": smtp,
        "DEMO_WEBHOOK_URL": webhook_url,
    }


async def run_command(
    console: Console, words: Sequence[str], environment: Mapping[str, str], folder: Path
) -> None:
    """Run one of broker-worker's commands to its end."""
    console.print(f"$ broker-worker {' '.join(words)}", highlight=False)
    name = "-".join(["broker-worker", *words])
    with child(name, [str(COMMAND), *words], environment, folder=folder) as process:
        await process.output(within=SECONDS_FOR_A_COMMAND)


def worker(environment: Mapping[str, str], folder: Path) -> AbstractContextManager[Child]:
    """Have the daemon, as a process that knows only its environment."""
    return child(
        "broker-worker-run", [str(COMMAND), "run"], environment, folder=folder, grace=SECONDS_TO_STOP
    )


async def wait_until_ready(console: Console, stage: Stage) -> None:
    """Return when the daemon consumes."""
    console.print("$ broker-worker run", highlight=False)
    deadline = time.monotonic() + SECONDS_TO_BE_READY
    while not await is_ready(stage.health):
        stage.daemon.require_running()
        if time.monotonic() > deadline:
            raise stage.daemon.failure(f"was not ready within {SECONDS_TO_BE_READY:g} s")
        await asyncio.sleep(0.05)


async def work(console: Console, stage: Stage) -> list[Published]:
    """Publish everything and watch until it has ended, or for long enough."""
    console.print(f"$ python {PUBLISHER.relative_to(CHECKOUT)}", highlight=False)
    began = time.monotonic()
    command = [sys.executable, str(PUBLISHER)]
    with (
        child("publisher", command, publisher_environment(stage), folder=stage.folder) as publisher,
        progress(console) as shown,
    ):
        published = await watch(stage, publisher, shown)
    console.print(f"done after {time.monotonic() - began:.1f} s", highlight=False)
    return published


def publisher_environment(stage: Stage) -> dict[str, str]:
    """Everything that the publisher gets to know: nothing of the worker."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    environment |= {"DEMO_AMQP_URL": stage.servers.amqp_url, "DEMO_FOLDER": str(stage.folder)}
    if stage.servers.management_url:
        environment["DEMO_MANAGEMENT_URL"] = stage.servers.management_url
    return environment


async def watch(stage: Stage, publisher: Child, shown: Progress) -> list[Published]:
    """Show the states until everything has ended.

    Gives up after `SECONDS_TO_WORK`: the accounting then tells what has not ended.
    """
    began = time.monotonic()
    while True:
        stage.daemon.require_running()
        said = publisher.output_if_ended()
        published = read_published(said) if said is not None else []
        is_over = said is not None and await has_settled(stage, published)
        seconds = time.monotonic() - began
        shown.show(await stage.books.states(), published=len(published), seconds=seconds)
        if is_over or seconds > SECONDS_TO_WORK:
            return published
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


async def has_settled(stage: Stage, published: list[Published]) -> bool:
    """Say whether all have ended and nothing is on its way any more."""
    facts = await stage.books.facts(duplicates=await count_duplicates(stage.health))
    if not is_settled(published, facts) or await stage.books.owed():
        return False
    return not await left_in_queues(stage.servers.amqp_url, all_queues())


async def account(console: Console, stage: Stage, published: list[Published]) -> bool:
    """Stop the daemon and show how it all ended; whether everything adds up."""
    duplicates = await count_duplicates(stage.health)
    code = stage.daemon.stop(within=SECONDS_TO_STOP)
    facts = await stage.books.facts(duplicates=duplicates)
    left = await left_in_queues(stage.servers.amqp_url, all_queues())
    done = effects(stage.folder, await stage.books.sales(), stage.mailbox, stage.receiver)
    found = problems(published, facts, done)
    found += [f"{count} messages are left in {queue}" for queue, count in left.items()]
    found += [f"the worker ended with the exit code {code}"] if code else []
    console.print(slowest_table(await stage.books.slowest(SLOWEST)))
    console.print(letters_table(await stage.books.dead()))
    show_outside(console, stage.mailbox, stage.receiver)
    show_result(console, totals(published, facts), found)
    return not found


def all_queues() -> list[str]:
    """Every queue that the demo can have left something in."""
    work = [f"bw.{role}.{name}" for role in ("q", "dead") for name in QUEUES]
    return [*work, *(f"bw.delay.{rung}" for rung in RUNGS_MS), "bw.unroutable"]


def read_published(text: str) -> list[Published]:
    """Read what the publisher printed."""
    return [
        Published(each["kind"], Identity(each["queue"], each["type"], each["id"]), each["payload"])
        for each in json.loads(text)
    ]

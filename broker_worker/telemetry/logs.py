"""Log lines: JSON for machines, readable on a terminal; the standard library's `logging` goes the same way.

Nothing here shows a payload, an input value or a secret, at any level.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from typing import TextIO, cast

import structlog
from structlog.stdlib import ProcessorFormatter

from broker_worker.failure import describe, printable
from broker_worker.telemetry.redaction import Redactor, plain

# Libraries that talk too much: WARNING at least, whatever the level of the rest.
QUIET = ("aiormq", "aio_pika", "pamqp", "asyncio", "alembic", "sqlalchemy", "asyncpg")
# They log frames, messages and URLs with the objects' own texts, on errors as well.
WIRE = ("aiormq", "aio_pika", "pamqp")
# How they say, each time again, what our own lines about connections and consumers say less often, and why.
REPETITIONS = (
    "error when creating transport",
    "Unexpected connection close from remote",
    "Cancelling cause reader exited abnormally",
    "Server connection %r was stuck",
    "Connection %r was blocked by",
    "Connection %r was unblocked",
    "Consumer %r cancelled by the broker",
    "Closing channel %r because RPC call",
)
RESERVED = frozenset({"timestamp", "level", "message", "event", "logger", "exception"})
LIBRARY = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
PRIVATE = LIBRARY | {"_logger", "_name"}  # what structlog adds to a record
MANY_LINES = ("exception", "stack")
FIRST = ("timestamp", "level", "message", "logger", "task", "task_id", "trace_id")  # the others as they come

QUOTED = json.encoder.encode_basestring_ascii  # what `json.dumps` makes of a text
Fields = Mapping[str, object]
_PLACEHOLDER = re.compile(r"%(\([^)]*\))?[-#0 +]*[\d*]*(\.[\d*]+)?[a-zA-Z]")


def configure(
    level: str,
    *,
    log_format: str,
    stream: TextIO,
    task_fields: Callable[[], Fields] = dict,
) -> Redactor:
    """Send every log line of this process to `stream`, from `level` (debug to error) on.

    `log_format` is json, console, or auto: console where `stream` is a terminal.
    `task_fields` gives what lines of the running handler carry. Comes back with what
    masks secrets, so that it can learn them. Calling it again replaces the former call.
    """
    redactor = Redactor()
    render = Console(has_colors=stream.isatty()) if is_console(log_format, stream) else render_json
    handler = _Handler(stream)
    handler.setFormatter(_Formatter(Assembly(redactor, task_fields), render))
    handler.addFilter(is_wanted)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return redactor


def is_console(log_format: str, stream: TextIO) -> bool:
    """Whether lines are for people; auto: where `stream` is a terminal."""
    return stream.isatty() if log_format == "auto" else log_format == "console"


def is_wanted(record: logging.LogRecord) -> bool:
    """Keep noisy libraries quiet, also when somebody has set their level lower."""
    if not _is_from(QUIET, record):
        return True
    return record.levelno >= logging.WARNING and not str(record.msg).startswith(REPETITIONS)


class Assembly:
    """Makes of a record what its line says, with nothing in it that must not be seen."""

    def __init__(self, redactor: Redactor, task_fields: Callable[[], Fields]) -> None:
        self._redactor = redactor
        self._task_fields = task_fields

    def __call__(self, _: object, __: str, event: MutableMapping[str, object]) -> dict[str, object]:
        """Be the first structlog processor of the handler's formatter."""
        record = event.pop("_record")
        assert isinstance(record, logging.LogRecord)  # noqa: S101 - ProcessorFormatter puts it there
        del event["_from_structlog"]
        error = _error(event.pop("exc_info", None))
        event.pop("stack_info", None)
        fields: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "message": self._redactor.text(plain(event.pop("event", ""))),
            "logger": record.name,
        }
        self._add(fields, event)
        record_fields = vars(record)
        if not record_fields.keys() <= PRIVATE:
            extra = {k: v for k, v in record_fields.items() if k not in LIBRARY and k[0] != "_"}
            self._add(fields, extra)
        if task_fields := self._task_fields():
            self._add(fields, {k: v for k, v in task_fields.items() if k not in fields})
        if error is not None:
            self._add_error(fields, error, is_from_wire=_is_from(WIRE, record))
        return {name: fields[name] for name in FIRST if name in fields} | fields

    def _add(self, fields: dict[str, object], more: Fields) -> None:
        for name, value in more.items():
            key = self._redactor.name(name)
            # `exception` is the text of a traceback, from our own events
            is_taken = key in RESERVED and not (key == "exception" and isinstance(value, str))
            fields[f"{key}_" if is_taken else key] = self._redactor.field(name, value)

    def _add_error(self, fields: dict[str, object], error: BaseException, *, is_from_wire: bool) -> None:
        failure = describe(error)
        fields.setdefault("error_type", failure.error_type)
        if is_from_wire:  # its text may hold a frame, and a lost connection needs no traceback
            return
        fields.setdefault("error", self._redactor.text(failure.message))
        if failure.traceback:
            fields["exception"] = self._redactor.text(failure.traceback)


def render_json(_: object, __: str, event: MutableMapping[str, object]) -> str:
    """Write one line of ASCII: every control character is escaped."""
    return "{" + ", ".join([f"{QUOTED(name)}: {_json(value)}" for name, value in event.items()]) + "}"


class Console:
    """Writes a line for a person; only a traceback or a stack has more than one, each of them indented."""

    def __init__(self, *, has_colors: bool) -> None:
        self._renderer = structlog.dev.ConsoleRenderer(
            colors=has_colors,
            event_key="message",
            exception_formatter=structlog.dev.plain_traceback,  # rich ones show local variables
            sort_keys=False,
        )

    def __call__(self, logger: object, method: str, event: MutableMapping[str, object]) -> str:
        """Be the last structlog processor of the handler's formatter."""
        shown = {printable(name): _escaped_value(value) for name, value in event.items()}
        for name in MANY_LINES:
            text = event.get(name)
            if isinstance(text, str):
                shown[name] = "\n".join(f"    {printable(line)}" for line in text.split("\n"))
        return str(self._renderer(logger, method, shown))


class LastLine(logging.Formatter):
    """What stands for a line that can't be made: a constant text, and where it came from."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "message": "a log line could not be written",
            "logger": record.name,
            "place": f"{record.filename}:{record.lineno}",
        }
        return json.dumps(fields)


class _Formatter(ProcessorFormatter):
    """Sees to it that arguments can't show more of themselves than they may."""

    def __init__(self, assemble: Assembly, render: Callable[..., str]) -> None:
        super().__init__(processors=[assemble, render], use_get_message=True)
        self._assemble = assemble
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, dict) and hasattr(record, "_logger") and not _is_from(WIRE, record):
            return self._format_structlog(record)
        record = logging.makeLogRecord(record.__dict__)  # other handlers see the original
        if _is_from(WIRE, record):
            record.msg, record.args = _template(record), ()
        elif isinstance(record.args, tuple):
            record.args = tuple(_Shown.where_needed(argument) for argument in record.args)
        if record.name == "asyncio" and isinstance(record.msg, str) and not record.args:
            record.msg = record.msg.partition("\n")[0]  # below are the texts of tasks and exceptions
        return super().format(record)

    def _format_structlog(self, record: logging.LogRecord) -> str:
        """Do what ProcessorFormatter does, but copy no record: that takes longer than all the rest."""
        event = {**record.msg, "_record": record, "_from_structlog": True}  # type: ignore[dict-item]
        return self._render(None, "", self._assemble(None, "", event))


class _Shown:
    """An argument of a log call that must not be written as it writes itself."""

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def where_needed(cls, argument: object) -> object:
        match argument:
            case BaseException():
                return cls(f"{type(argument).__name__}: {plain(argument)}")
            case bytes() | bytearray() | memoryview():
                return cls(f"<{len(argument)} bytes>")
            case _:
                return argument

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__


class _Handler(logging.StreamHandler[TextIO]):
    """Writes whole lines. One that can't be made must neither fail its caller nor show its arguments."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if line.isascii():
            return line
        return line.encode(self._encoding, "backslashreplace").decode(self._encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exception(), OSError):
            return  # nobody reads any more, or the disk is full; the work goes on
        with suppress(OSError, ValueError):  # the latter: the stream is closed
            self.stream.write(LastLine().format(record) + self.terminator)
            self.flush()


def _is_from(names: Collection[str], record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in names


def _template(record: logging.LogRecord) -> str:
    """Keep the constant text of a record, and of its arguments the numbers; of the others only the type."""
    arguments = iter(record.args if isinstance(record.args, tuple) else ())

    def shown(_: re.Match[str]) -> str:
        argument = next(arguments, None)
        return str(argument) if isinstance(argument, (int, float)) else f"<{type(argument).__name__}>"

    return _PLACEHOLDER.sub(shown, record.msg) if isinstance(record.msg, str) else type(record.msg).__name__


def _error(given: object) -> BaseException | None:
    match given:
        case BaseException():
            return given
        case (_, BaseException() as error, _):
            return error
        case True:
            return sys.exception()
        case _:
            return None


def _json(value: object) -> str:
    """Write one value; for a text or a number, as nearly all are, `json.dumps` would make an encoder."""
    kind = type(value)
    if kind is str:
        return QUOTED(cast("str", value))
    if kind is int or (kind is float and isfinite(cast("float", value))):
        return repr(value)
    return json.dumps(value)


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _escaped_value(value: object) -> object:
    match value:
        case str():
            return printable(value)
        case dict() | list():
            return printable(json.dumps(value, ensure_ascii=False))
        case _:
            return value

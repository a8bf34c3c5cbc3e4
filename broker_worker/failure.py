"""Errors as people see them later: bounded, printable, without input values, and never in the way.

Whatever a handler raises has to become a row, a header and a log line, so
`describe` is total: it returns for every exception there is.
"""

from __future__ import annotations

import hashlib
import linecache
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType, TracebackType

from pydantic_core import ValidationError

from broker_worker.outcome import Failure, Reason

MAX_MESSAGE_BYTES = 1024
MAX_TRACEBACK_BYTES = 16 * 1024
MAX_TYPE_BYTES = 200
MAX_CHARACTER_BYTES = 4  # of UTF-8
SHOWN_ERRORS = 10  # of a validation; a body of 1 MiB can hold half a million
MOST_ERRORS = 1000  # of a validation that are looked at
SHOWN_LINKS = 8  # of a chain of causes
SHOWN_MEMBERS = 5  # of an exception group, at each of two levels
SHOWN_NOTES = 5
FIRST_FRAMES = 10
LAST_FRAMES = 30
FINGERPRINT_FRAMES = 5
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
ELLIPSIS = "…"
PACKAGE = str(Path(__file__).parent)

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Refusal(Exception):  # noqa: N818 - a verdict on a body or a result, not a fault of ours
    """A body or a result that can't be taken: the reason code, and what to keep of it."""

    def __init__(self, reason: Reason, failure: Failure) -> None:
        super().__init__(f"{reason}: {failure.message}")
        self.reason = reason
        self.failure = failure


class UntouchableError(Exception):
    """Stands for an error that can't be looked at."""


def describe(error: BaseException) -> Failure:
    """Say what is worth keeping of `error`: no locals, no input values of a validation."""
    return Failure(
        error_type=clean(type_name(error), MAX_TYPE_BYTES),
        message=clean(_message(error), MAX_MESSAGE_BYTES),
        traceback=_traceback(error),
        fingerprint=_fingerprint(error),
        error=error,
    )


def clean(text: str, limit: int) -> str:
    """Make `text` storable: no NUL, no lone surrogate, at most `limit` bytes of UTF-8. Idempotent."""
    if len(text) <= limit and text.isascii() and "\0" not in text:  # nearly all: no need to encode
        return text
    shortened = _UNSTORABLE.sub(REPLACEMENT, text[: limit + 1])  # a character has at least one byte
    encoded = shortened.encode()
    if len(encoded) <= limit:
        return shortened
    if limit < len(ELLIPSIS.encode()):
        return encoded[:limit].decode(errors="ignore")
    return encoded[: limit - len(ELLIPSIS.encode())].decode(errors="ignore") + ELLIPSIS


def printable(text: str) -> str:
    """Show what would move the cursor, reorder the line or end it as an escape sequence."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def type_name(error: BaseException) -> str:
    """Name an error's class as its author wrote it."""
    try:
        return str(type.__getattribute__(type(error), "__qualname__"))
    except BaseException:  # noqa: BLE001 - a metaclass is the user's code as well
        return "Exception"


def tamed(error: BaseException) -> BaseException:
    """Return `error`, or another in its place if not even its class can be asked for without harm.

    `isinstance` asks an object for its class, which can be the user's code and raise anything.
    """
    try:
        error.__class__  # noqa: B018 - to see whether it raises
    except BaseException as raised:  # noqa: BLE001 - the user's code
        return UntouchableError(
            f"{type_name(error)} raised {type_name(raised)} when it was asked for its class"
        )
    return error


def fingerprint(*parts: str) -> str:
    """Hash what makes two failures the same kind: 16 hexadecimal digits."""
    text = "\n".join(_UNSTORABLE.sub(REPLACEMENT, part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def validation_summary(error: ValidationError, *, known: Collection[str] | None = None) -> str:
    """List where a validation failed and how, never with which value.

    A place can be input, too (the key of a mapping, an unexpected member): with
    `known`, every name that is not in it becomes `*`; without, those that
    pydantic says are keys.
    """
    if error.error_count() > MOST_ERRORS:  # to list a million takes seconds and a gigabyte
        return f"{error.error_count()} errors"
    details = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{_place(d['loc'], d['type'], known)}: {d['type']}" for d in details[:SHOWN_ERRORS]]
    if len(details) > SHOWN_ERRORS:
        shown.append(f"and {len(details) - SHOWN_ERRORS} more")
    return "; ".join(shown)


def _place(location: tuple[int | str, ...], kind: str, known: Collection[str] | None) -> str:
    parts = list(location)
    if known is not None:
        parts = [p if isinstance(p, int) or p == "[key]" or p in known else "*" for p in parts]
    elif parts and (kind == "extra_forbidden" or parts[-1] == "[key]"):
        parts[-2 if parts[-1] == "[key]" else -1] = "*"
    return ".".join(map(str, parts)) or "body"


def _message(error: BaseException) -> str:
    try:
        if isinstance(error, ValidationError):
            return validation_summary(error)
        return str.__str__(str(error))  # a subclass of str could bring its own methods
    except BaseException as broken:  # noqa: BLE001 - __str__ is the user's code and may raise anything
        return f"<no message: its __str__ raised {type_name(broken)}>"


def _traceback(error: BaseException) -> str | None:
    try:
        text = "\n".join(_section_lines(error, depth=0))
    except BaseException:  # noqa: BLE001 - attributes of an exception are the user's code as well
        return None
    return _ends(_UNSTORABLE.sub(REPLACEMENT, text), MAX_TRACEBACK_BYTES)


def _ends(text: str, limit: int) -> str:
    """Keep the head and the longer tail of what is too long."""
    if len(text) * MAX_CHARACTER_BYTES <= limit:
        return text
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    gap = f"\n{ELLIPSIS}\n"
    head = (limit - len(gap.encode())) // 3
    tail = limit - len(gap.encode()) - head
    return encoded[:head].decode(errors="ignore") + gap + encoded[-tail:].decode(errors="ignore")


def _section_lines(error: BaseException, *, depth: int) -> Iterator[str]:
    for place, link in enumerate(reversed(_chain(error))):
        if place:
            yield "\nwhich led to:\n"
        yield from _frame_lines(link.__traceback__)
        yield f"{type_name(link)}: {clean(_message(link), MAX_MESSAGE_BYTES)}"
        yield from _note_lines(link)
        if isinstance(link, BaseExceptionGroup):
            yield from _member_lines(link, depth=depth)


def _chain(error: BaseException) -> list[BaseException]:
    """From `error` to what caused it, without turning in circles."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(links) < SHOWN_LINKS and not any(link is seen for seen in links):
        links.append(link)
        cause = link.__cause__
        if cause is None and not link.__suppress_context__:
            cause = link.__context__
        link = cause
    return links


def _frame_lines(traceback: TracebackType | None) -> Iterator[str]:
    frames = _frames(traceback)
    if frames:
        yield "Traceback (most recent call last):"
    for code, line in frames:
        yield _shown_frame(code.co_filename, line, code.co_name)


@lru_cache(1000)  # handlers fail in the same places again and again
def _shown_frame(path: str, line: int, name: str) -> str:
    source = linecache.getline(path, line).strip()
    place = f'  File "{path}", line {line}, in {name}'
    return f"{place}\n    {source}" if source else place


def _frames(traceback: TracebackType | None) -> list[tuple[CodeType, int]]:
    """The outermost and the innermost frames, without ours that led to the handler."""
    first: list[tuple[CodeType, int]] = []
    last: deque[tuple[CodeType, int]] = deque(maxlen=LAST_FRAMES)
    while traceback is not None:
        frame = (traceback.tb_frame.f_code, traceback.tb_lineno)
        is_ours = not first and frame[0].co_filename.startswith(PACKAGE)
        if not is_ours:
            (first if len(first) < FIRST_FRAMES else last).append(frame)
        traceback = traceback.tb_next
    return [*first, *last]


def _note_lines(error: BaseException) -> Iterator[str]:
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list) and not isinstance(error, ValidationError):
        yield from (clean(note, MAX_MESSAGE_BYTES) for note in notes[:SHOWN_NOTES] if isinstance(note, str))


def _member_lines(group: BaseExceptionGroup[BaseException], *, depth: int) -> Iterator[str]:
    members = group.exceptions
    for member in members[:SHOWN_MEMBERS]:
        yield f"  + {type_name(member)}: {clean(_message(member), MAX_MESSAGE_BYTES)}"
        if depth == 0:
            yield from (f"  | {line}" for line in _section_lines(member, depth=1))
    if len(members) > SHOWN_MEMBERS:
        yield f"  + and {len(members) - SHOWN_MEMBERS} more"


def _fingerprint(error: BaseException) -> str | None:
    """Hash the type and the innermost functions: stable over messages, line numbers and hosts."""
    try:
        kinds = [_qualified(error)]
        if isinstance(error, BaseExceptionGroup):
            kinds += sorted({_qualified(member) for member in error.exceptions[:100]})
        frames = next(filter(None, (_frames(link.__traceback__) for link in _chain(error))), [])
    except BaseException:  # noqa: BLE001 - as in _traceback
        return None
    places = [(code.co_filename, code.co_name) for code, _ in frames[-FINGERPRINT_FRAMES:]]
    return _fingerprint_of(tuple(kinds), tuple(places))


@lru_cache(1000)
def _fingerprint_of(kinds: Sequence[str], places: Sequence[tuple[str, str]]) -> str:
    return fingerprint(*kinds, *(f"{Path(path).name}:{name}" for path, name in places))


def _qualified(error: BaseException) -> str:
    return f"{type(error).__module__}.{type_name(error)}"

"""What may be shown: a text without secrets. Logs, probes and the texts of failures pass through here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from urllib.parse import quote, unquote

from pydantic import ValidationError

from broker_worker.failure import (
    ELLIPSIS,
    MAX_MESSAGE_BYTES,
    MAX_TRACEBACK_BYTES,
    clean,
    validation_summary,
)
from broker_worker.outcome import Dead, Failure, Outcome, Postponed

MASK = "***"
LONGEST_TEXT = 32 * 1024  # characters; a stored traceback has half of it
DEEPEST = 6  # levels of a nested value
MOST_MEMBERS = 200  # of one collection
MIN_SECRET = 3  # characters; less can't be told from ordinary text
MIN_HALF = 4  # characters of one that was cut
MOST_CUTS = 20  # in one text, or ends that a URL's password may have
MOST_NAMES = 500  # of fields that are remembered: few names are on nearly all lines
MOST_TEXTS = 1000  # that are remembered
LONGEST_REMEMBERED = 200  # characters of such a text
MIN_EMBEDDED_SECRET = 8  # shorter ones are masked as whole words only: `guest` is in `guesthouse`

# Up to the last @ of the word: a password may hold any of / ? # : @ where somebody forgot to encode it.
# The bounds keep a hostile text from costing quadratic time.
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://)\S{0,1000}@", re.IGNORECASE)
_VALUE = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s&,;'"]+)"""
_ASSIGNED = re.compile(rf"\b(\w*(?:password|passwd|secret|token|api_?key)\s*=\s*){_VALUE}", re.IGNORECASE)
_INPUT = re.compile(r"\binput_value=.*?(, input_type=|\]|$)", re.DOTALL)  # pydantic's own text of an error
_DETAIL = re.compile(r"(\bDETAIL:).*")  # Postgres repeats the row there
_NAMES = re.compile(r"(password|passwd|secret|token|api_?key|authorization|dsn)$", re.IGNORECASE)
_USER = re.compile(r"[a-z][a-z0-9+.-]*://[^:@/]*:", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PARAMETER = re.compile(r"[?&]\w*(?:password|passwd|passphrase|secret|token)=([^&]*)", re.IGNORECASE)


class Redactor:
    """Masks secrets by their shape, and those that it was told by their value."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._spellings: frozenset[str] = frozenset()
        self._known: re.Pattern[str] | None = None
        self._text_by_name: dict[str, str] = {}
        self._shown_by_text: dict[str, str] = {}
        for secret in secrets:
            self.learn(secret)

    def learn(self, secret: str) -> None:
        """Mask `secret` from now on, and what in it is secret by itself: a URL's passwords, a list's keys.

        For one that is read again from its file, and has changed, likewise; the former stays masked.
        """
        values = {secret, *_parts(secret)}
        spellings = {
            spelling for value in values | set(map(unquote, values)) for spelling in _spellings(value)
        }
        self._spellings |= {spelling for spelling in spellings if len(spelling) >= MIN_SECRET}
        longest_first = sorted(self._spellings, key=len, reverse=True)
        self._known = re.compile("|".join(map(_pattern, longest_first))) if longest_first else None
        # last: whoever masks in another thread meanwhile remembers it where nobody looks any more
        self._text_by_name = {}
        self._shown_by_text = {}

    def text(self, text: str) -> str:
        """Mask what must not be seen in `text`, and cut what is too long.

        Short ones are remembered for a while: when a service is down, lines differ in little but their task.
        """
        if len(text) > LONGEST_REMEMBERED or type(text) is not str:  # another's type may hash as it likes
            return self._masked(text)
        remembered = self._shown_by_text
        shown = remembered.get(text)
        if shown is None:
            if len(remembered) >= MOST_TEXTS:
                remembered.clear()
            shown = remembered[text] = self._masked(text)
        return shown

    def _masked(self, text: str) -> str:
        text = text[: 2 * LONGEST_TEXT]  # cut for good only once the masks are on: half a secret is one, too
        if self._known is not None and any(map(text.__contains__, self._spellings)):
            text = self._known.sub(MASK, text)
        if ELLIPSIS in text:
            text = self._without_halves(text)
        if "://" in text:
            text = _USERINFO.sub(rf"\1{MASK}@", text)
        if "=" in text:
            text = _ASSIGNED.sub(rf"\1{MASK}", text)
            text = _INPUT.sub(rf"input_value={MASK}\1", text)
        if "DETAIL:" in text:
            text = _DETAIL.sub(rf"\1 {MASK}", text)
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}{ELLIPSIS}"

    def _without_halves(self, text: str) -> str:
        """Mask what is left of a secret where somebody else has cut a text: before and after an ellipsis."""
        parts = text.split(ELLIPSIS)
        for index in range(min(len(parts), MOST_CUTS)):
            for spelling in self._spellings:
                kept = parts[index]
                if index < len(parts) - 1 and (half := _end_in_common(kept, spelling)):
                    parts[index] = kept = f"{kept[:-half]}{MASK}"
                beginning = kept.lstrip("\n")
                if index > 0 and (half := _end_in_common(beginning[::-1], spelling[::-1])):
                    parts[index] = f"{kept[: len(kept) - len(beginning)]}{MASK}{beginning[half:]}"
        return ELLIPSIS.join(parts)

    def outcome(self, outcome: Outcome) -> Outcome:
        """Mask what an attempt's end says of itself: it is kept in rows, in dead letters and in headers."""
        match outcome:
            case Postponed() | Dead():
                return replace(outcome, failure=self._failure(outcome.failure))
            case _:
                return outcome

    def _failure(self, failure: Failure) -> Failure:
        traceback = failure.traceback
        return replace(
            failure,
            message=clean(self.text(failure.message), MAX_MESSAGE_BYTES),
            traceback=traceback and clean(self.text(traceback), MAX_TRACEBACK_BYTES),
        )

    def value(self, value: object, *, depth: int = DEEPEST) -> object:
        """Make any value one that JSON can hold, without secrets."""
        match value:
            case str():
                return self.text(value)
            case bool() | int() | float() | None:
                return value
            case bytes() | bytearray() | memoryview():
                return f"<{len(value)} bytes>"  # a body, most likely
            case _ if depth == 0:
                return "…"
            case Mapping():
                return self._mapping(value, depth)
            case list() | tuple() | set() | frozenset():
                return [self.value(member, depth=depth - 1) for member in islice(value, MOST_MEMBERS)]
            case _:
                return self.text(plain(value))

    def name(self, name: str) -> str:
        """Mask what must not be seen in the name of a field."""
        remembered = self._text_by_name
        shown = remembered.get(name)
        if shown is None:
            shown = self.text(name)
            if len(remembered) < MOST_NAMES:
                remembered[name] = shown
        return shown

    def field(self, name: str, value: object) -> object:
        """Make the value of a named field one that may be shown."""
        return MASK if _names_a_secret(name) and value is not None else self.value(value)

    def _mapping(self, mapping: Mapping[object, object], depth: int) -> dict[str, object]:
        shown: dict[str, object] = {}
        for key, value in islice(mapping.items(), MOST_MEMBERS):
            name = self.text(plain(key))
            shown[name] = MASK if _names_a_secret(name) else self.value(value, depth=depth - 1)
        return shown


@lru_cache(MOST_NAMES)
def _names_a_secret(name: str) -> bool:
    return _NAMES.search(name) is not None


def plain(value: object) -> str:
    """Write any object as text; of a failed validation only where and how, not with which value."""
    try:
        if isinstance(value, ValidationError):
            return validation_summary(value)
        return str(value)
    except Exception as error:  # noqa: BLE001 - somebody's __str__; a log line must not fail the work
        return f"<{type(value).__name__}: its text raised {type(error).__name__}>"


def _parts(secret: str) -> Iterator[str]:
    """Find what is secret by itself: of a URL its passwords, wherever they end; of a list its keys."""
    if (user := _USER.match(secret)) is not None:
        rest = secret[user.end() :]
        ends = [index for index, character in enumerate(rest) if character == "@"]
        yield from (rest[:end] for end in ends[:MOST_CUTS])
    if _SCHEME.match(secret) is not None:
        yield from _PARAMETER.findall(secret)
    else:
        yield from (key.partition(":")[2].strip() for key in secret.split(","))


def _end_in_common(text: str, secret: str) -> int:
    """How many characters of the beginning of `secret` stand at the end of `text`; a few mean nothing."""
    for length in range(min(len(text), len(secret)), MIN_HALF - 1, -1):
        if text.endswith(secret[:length]):
            return length
    return 0


def _spellings(secret: str) -> set[str]:
    """How a secret looks in a URL, in a repr and in JSON."""
    written = {secret, quote(secret, safe=""), quote(secret)}
    return written | {json.dumps(secret)[1:-1], repr(secret)[1:-1]}


def _pattern(spelling: str) -> str:
    pattern = re.escape(spelling)
    return pattern if len(spelling) >= MIN_EMBEDDED_SECRET else rf"(?<!\w){pattern}(?!\w)"

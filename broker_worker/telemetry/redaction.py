"""What may be shown: a text without secrets. Logs and probes pass everything through here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from urllib.parse import quote, unquote

from pydantic import ValidationError

from broker_worker.failure import validation_summary

MASK = "***"
LONGEST_TEXT = 32 * 1024  # characters; a stored traceback has half of it
DEEPEST = 6  # levels of a nested value
MOST_MEMBERS = 200  # of one collection
MIN_SECRET = 3  # characters; less can't be told from ordinary text
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
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://([^:@/]*):(?P<password>.*)@", re.IGNORECASE | re.DOTALL)


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
        """Mask `secret` from now on; of a URL also its password alone, encoded or not.

        One that is read again from its file may have changed: learn it again then.
        """
        values = {secret}
        url = _URL_PASSWORD.match(secret)
        if url is not None:
            values |= {url["password"], unquote(url["password"])}
        spellings = {spelling for value in values for spelling in _spellings(value)}
        self._spellings |= {spelling for spelling in spellings if len(spelling) >= MIN_SECRET}
        longest_first = sorted(self._spellings, key=len, reverse=True)
        self._known = re.compile("|".join(map(_pattern, longest_first))) if longest_first else None
        self._text_by_name = {}
        self._shown_by_text = {}

    def text(self, text: str) -> str:
        """Mask what must not be seen in `text`, and cut what is too long.

        Short ones are remembered for a while: when a service is down, lines differ in little but their task.
        """
        if len(text) > LONGEST_REMEMBERED or type(text) is not str:  # another's type may hash as it likes
            return self._masked(text)
        shown = self._shown_by_text.get(text)
        if shown is None:
            if len(self._shown_by_text) >= MOST_TEXTS:
                self._shown_by_text.clear()
            shown = self._shown_by_text[text] = self._masked(text)
        return shown

    def _masked(self, text: str) -> str:
        text = text[: 2 * LONGEST_TEXT]  # cut for good only once the masks are on: half a secret is one, too
        if self._known is not None:
            text = self._known.sub(MASK, text)
        if "://" in text:
            text = _USERINFO.sub(rf"\1{MASK}@", text)
        if "=" in text:
            text = _ASSIGNED.sub(rf"\1{MASK}", text)
            text = _INPUT.sub(rf"input_value={MASK}\1", text)
        if "DETAIL:" in text:
            text = _DETAIL.sub(rf"\1 {MASK}", text)
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"

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
        shown = self._text_by_name.get(name)
        if shown is None:
            shown = self.text(name)
            if len(self._text_by_name) < MOST_NAMES:
                self._text_by_name[name] = shown
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


def _spellings(secret: str) -> set[str]:
    """How a secret looks in a URL, in a repr and in JSON."""
    written = {secret, quote(secret, safe=""), quote(secret)}
    return written | {json.dumps(secret)[1:-1], repr(secret)[1:-1]}


def _pattern(spelling: str) -> str:
    pattern = re.escape(spelling)
    return pattern if len(spelling) >= MIN_EMBEDDED_SECRET else rf"(?<!\w){pattern}(?!\w)"

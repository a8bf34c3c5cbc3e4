"""How settings are written: text to value and back, and what to say when the text is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T", int, timedelta)

DURATION_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
LONGEST_DURATION = timedelta(days=3650)
DEFAULT_CONCURRENCY = 16  # enough for handlers that wait; one core of handlers that compute wants fewer
MAX_CONCURRENCY = 1000
QUEUE_NAME = re.compile("[A-Za-z0-9_-]{1,100}")  # no dot: it parts the words of a dead letter's routing key


@dataclass(frozen=True, slots=True)
class Notation:
    """Pydantic metadata of one way to write a setting. `parse` raises ValueError for what isn't `allowed`."""

    allowed: str
    parse: Callable[[str], object]
    show: Callable[[Any], str] = str
    is_empty_a_value: bool = False  # else an empty variable counts as not set: compose files make those

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def _read(self, value: object) -> object:
        return self.parse(value.strip()) if isinstance(value, str) else value


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def duration(least: timedelta = timedelta(0)) -> Notation:
    """A duration, at least `least`."""
    allowed = f"a duration such as 30, 30s, 5m, 2h, 7d or 250ms, from {show_duration(least)} to 3650d"

    def parse(text: str) -> timedelta:
        return _within(parse_duration(text), least, LONGEST_DURATION)

    return Notation(allowed, parse, show_duration)


def retention(least: timedelta) -> Notation:
    """A duration, or `kept` for ever."""
    inner = duration(least)
    return Notation(
        f"kept, or {inner.allowed}",
        lambda text: None if text == "kept" else inner.parse(text),
        lambda value: "kept" if value is None else show_duration(value),
    )


def size(least: int, most: int) -> Notation:
    """A number of bytes."""
    allowed = f"a size such as 64KiB, 1MiB or 1000000 (bytes), from {show_size(least)} to {show_size(most)}"
    return Notation(allowed, lambda text: _within(parse_size(text), least, most), show_size)


def whole(least: int, most: int) -> Notation:
    """A whole number."""
    return Notation(
        f"a whole number from {least} to {most}", lambda text: _within(_digits(text), least, most)
    )


def fraction() -> Notation:
    """A part of a whole, 0 to 1."""

    def parse(text: str) -> float:
        if re.fullmatch(r"0(\.[0-9]{1,6})?|1(\.0{1,6})?", text) is None:
            raise ValueError("not a fraction")
        return float(text)

    return Notation("a number from 0 to 1", parse, lambda value: f"{value:g}")


def choice(kind: type[StrEnum]) -> Notation:
    """One of the values of `kind`."""
    return Notation(" or ".join(kind), lambda text: kind(text.lower()))


def pattern(regex: str, allowed: str) -> Notation:
    """Text of one shape."""
    return Notation(allowed, lambda text: _matching(regex, text))


def several(regex: str, allowed: str) -> Notation:
    """A list, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        if not (items := _items(text)) and text.strip():
            raise ValueError("commas alone")
        return tuple(_matching(regex, item) for item in items)

    return Notation(allowed, parse, ",".join)


def parse_duration(text: str) -> timedelta:
    """Read a duration: a number of seconds, or with a unit."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d|)", text)
    if found is None:
        raise ValueError("not a duration")
    try:
        return float(found[1]) * DURATION_UNITS[found[2] or "s"]
    except OverflowError as error:
        raise ValueError("too long") from error


def show_duration(value: timedelta) -> str:
    """Write a duration with the largest unit that needs no fraction; `parse_duration` reads it."""
    for unit, length in reversed(DURATION_UNITS.items()):
        if value >= length and value % length == timedelta(0):
            return f"{value // length}{unit}"
    return f"{value.total_seconds():g}s"


def parse_size(text: str) -> int:
    """Read a number of bytes, with or without a unit."""
    found = re.fullmatch("([0-9]{1,15}) ?([A-Za-z]*)", text)
    unit = {name.lower(): factor for name, factor in SIZE_UNITS.items()}
    if found is None or found[2].lower() not in unit:
        raise ValueError("not a size")
    return int(found[1]) * unit[found[2].lower()]


def show_size(value: int) -> str:
    """Write a number of bytes with the largest binary unit that needs no fraction."""
    for unit in ("GiB", "MiB", "KiB"):
        if value and value % SIZE_UNITS[unit] == 0:
            return f"{value // SIZE_UNITS[unit]}{unit}"
    return str(value)


def _parse_switch(text: str) -> bool:
    if text.lower() in {"true", "1", "yes", "on"}:
        return True
    if text.lower() in {"false", "0", "no", "off"}:
        return False
    raise ValueError("neither true nor false")


def _parse_queues(text: str) -> dict[str, int]:
    queues: dict[str, int] = {}
    for item in _items(text):
        name, colon, concurrency = item.partition(":")
        _matching(QUEUE_NAME.pattern, name)
        if name in queues:
            raise ValueError("twice the same name")
        queues[name] = _within(_digits(concurrency), 1, MAX_CONCURRENCY) if colon else DEFAULT_CONCURRENCY
    if not queues:
        raise ValueError("no queue")
    return queues


def _show_queues(queues: Mapping[str, int]) -> str:
    return ",".join(f"{name}:{concurrency}" for name, concurrency in queues.items())


def _parse_address(text: str) -> Address | None:
    if text.lower() in {"", "off"}:
        return None
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address without brackets")
    return Address(_matching(r"[^\s/@]+", host), _within(_digits(port), 0, 65535))


def _show_address(value: Address | None) -> str:
    if value is None:
        return "off"
    return f"[{value.host}]:{value.port}" if ":" in value.host else f"{value.host}:{value.port}"


SWITCH = Notation("true or false", _parse_switch, lambda value: "true" if value else "false")
QUEUES = Notation(
    "name:concurrency separated by commas, such as email:8,reports:4; each name once, of 1 to 100 "
    f"A-Z a-z 0-9 _ -; concurrency from 1 to {MAX_CONCURRENCY}, {DEFAULT_CONCURRENCY} where none is given",
    _parse_queues,
    _show_queues,
)
ADDRESS = Notation("host:port, [IPv6]:port, or off", _parse_address, _show_address, is_empty_a_value=True)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _matching(regex: str, text: str) -> str:
    if re.fullmatch(regex, text) is None:
        raise ValueError("not of this shape")
    return text


def _digits(text: str) -> int:
    return int(_matching("[0-9]{1,18}", text.strip()))


def _within(value: T, least: T, most: T) -> T:
    if not least <= value <= most:
        raise ValueError("out of range")
    return value

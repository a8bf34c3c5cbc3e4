"""What handlers may raise and return at their worst: text that Postgres refuses, objects that fight back."""

from __future__ import annotations

import asyncio
import dataclasses
import decimal
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from broker_worker import GiveUp, Retry

HUGE = 100_000
UNSTORABLE = "a\0b\ud800c\udfff\uffff😀"


class Fighting(Exception):  # noqa: N818 - not an error of ours
    """Raises `weapon` from whatever of it somebody touches."""

    weapon: type[BaseException] = OSError


def armed(weapon: type[BaseException], *members: str) -> BaseException:
    """An exception whose `members` raise `weapon`."""

    def strike(self: object, *args: object) -> Any:  # noqa: ANN401
        raise weapon

    methods = {"__str__", "__repr__", "__reduce__", "__eq__", "__hash__", "__bool__"}
    body = {name: strike if name in methods else property(strike) for name in members}
    kind = type("Armed", (Exception,), body)
    made: BaseException = kind("text")
    return made


def odd_text() -> BaseException:
    class Odd(Exception):  # noqa: N818
        def __str__(self) -> str:
            return 7  # type: ignore[return-value]  # noqa: PLE0307 - on purpose

    return Odd()


def text_of_its_own() -> BaseException:
    class Text(str):
        __slots__ = ()

        def encode(self, *args: object) -> bytes:
            raise SystemExit

    class Odd(Exception):  # noqa: N818
        def __str__(self) -> str:
            return Text("its own")

    return Odd()


def named(name: str) -> BaseException:
    kind = type("Named", (Exception,), {})
    kind.__qualname__ = kind.__module__ = name
    made: BaseException = kind("text")
    return made


def circle() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = first, second
    return first


def chain() -> BaseException:
    error: BaseException = ValueError("x" * 100)
    for _ in range(HUGE):
        outer = ValueError("y")
        outer.__cause__ = error
        error = outer
    return error


def unchain(error: BaseException) -> None:
    """Take a long chain apart: the interpreter would do it by recursion."""
    while type(error) is ValueError and error.__cause__ is not None:
        cause, error.__cause__ = error.__cause__, None
        error = cause


def nested_groups() -> BaseException:
    group: ExceptionGroup[Exception] = ExceptionGroup("leaf", [ValueError("one")])
    for _ in range(500):
        group = ExceptionGroup(UNSTORABLE, [group, ValueError()])
    return group


def noted(notes: object) -> BaseException:
    error = ValueError("noted")
    error.__notes__ = notes  # type: ignore[assignment]  # on purpose
    return error


def from_strange_code() -> BaseException:
    try:
        exec(compile("raise ValueError('from strange code')", "\udcff\x1b[2J\n", "exec"))
    except ValueError as error:
        return error
    raise AssertionError


def recursion() -> BaseException:
    def turn() -> None:
        turn()

    try:
        turn()
    except RecursionError as error:
        return error
    raise AssertionError


def validation() -> BaseException:
    try:
        TypeAdapter(list[int]).validate_python(["secret\0"] * HUGE)
    except ValueError as error:
        return error
    raise AssertionError


RAISED: Mapping[str, Callable[[], BaseException]] = {
    "NUL and surrogates": lambda: ValueError(UNSTORABLE),
    "nothing but NULs": lambda: ValueError("\0" * HUGE),
    "a text of 10 MB": lambda: ValueError("ä" * 10_000_000),
    "bytes": lambda: ValueError(bytes(range(256))),
    "str raises": lambda: armed(ValueError, "__str__"),
    "str raises SystemExit": lambda: armed(SystemExit, "__str__", "__repr__"),
    "str raises KeyboardInterrupt": lambda: armed(KeyboardInterrupt, "__str__", "__repr__"),
    "str raises CancelledError": lambda: armed(asyncio.CancelledError, "__str__", "__repr__"),
    "str recurses": lambda: armed(RecursionError, "__str__"),
    "str gives no text": odd_text,
    "str gives a text that fights back": text_of_its_own,
    "its class can't be seen": lambda: armed(OSError, "__class__"),
    "its class exits": lambda: armed(SystemExit, "__class__"),
    "its cause exits": lambda: armed(SystemExit, "__cause__", "__context__"),
    "its notes exit": lambda: armed(SystemExit, "__notes__"),
    "its traceback exits": lambda: armed(SystemExit, "__traceback__"),
    "it equals nothing": lambda: armed(OSError, "__eq__", "__hash__", "__bool__"),
    "it can't be copied": lambda: armed(OSError, "__reduce__", "args"),
    "a name that can't be stored": lambda: named(UNSTORABLE),
    "a name of 10^5 letters": lambda: named("n" * HUGE),
    "causes in a circle": circle,
    "10^5 causes": chain,
    "a group of 10^5": lambda: ExceptionGroup("g", [ValueError(UNSTORABLE)] * HUGE),
    "groups 500 deep": nested_groups,
    "a group that exits": lambda: BaseExceptionGroup("g", [SystemExit(3), KeyboardInterrupt()]),
    "10^5 notes": lambda: noted([UNSTORABLE] * HUGE),
    "notes that are none": lambda: noted([1, None, object()]),
    "notes in no list": lambda: noted(7),
    "code from nowhere": from_strange_code,
    "recursion": recursion,
    "a validation of 10^5 faults": validation,
    "StopIteration": lambda: StopIteration(UNSTORABLE),
    "StopAsyncIteration": lambda: StopAsyncIteration(1),
    "GeneratorExit": lambda: GeneratorExit(1),
    "SystemExit": lambda: SystemExit(UNSTORABLE),
    "KeyboardInterrupt": lambda: KeyboardInterrupt(UNSTORABLE),
    "MemoryError": MemoryError,
    "CancelledError": lambda: asyncio.CancelledError(UNSTORABLE),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff" * HUGE, 0, 1, "why\0"),
    "GiveUp with what can't be stored": lambda: GiveUp(UNSTORABLE),
    "GiveUp of 10 MB": lambda: GiveUp("x" * 10_000_000),
    "Retry after NaN": lambda: Retry(delay=math.nan),
    "Retry after for ever": lambda: Retry(delay=math.inf),
    "Retry before now": lambda: Retry(delay=-1e300),
}


@dataclasses.dataclass
class Point:
    x: object


class Locked:
    """Raises when it is looked at."""

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        raise SystemExit


class Endless(dict[str, int]):
    """Raises when it is gone through."""

    def items(self) -> Any:  # noqa: ANN401
        raise KeyboardInterrupt

    __iter__ = keys = values = items


def generator() -> Iterator[int]:
    yield 1
    raise SystemExit


async def stream() -> AsyncIterator[int]:
    yield 1


def deep() -> object:
    value: list[object] = []
    for _ in range(10_000):
        value = [value]
    return value


def ring() -> object:
    value: list[object] = []
    value.append(value)
    return value


RETURNED: Mapping[str, Callable[[], object]] = {
    "an object": object,
    "a generator": generator,
    "an asynchronous generator": stream,
    "a function": lambda: deep,
    "a module": lambda: sys,
    "a class": lambda: Point,
    "an exception": lambda: ValueError(UNSTORABLE),
    "an object that fights back": Locked,
    "a dictionary that fights back": lambda: Endless(a=1),
    "a NUL": lambda: "a\0b",
    "a NUL in a key": lambda: {"a\0b": 1},
    "a NUL in a dataclass": lambda: Point("\0"),
    "a surrogate": lambda: "\ud800",
    "a surrogate in a key": lambda: {"\ud800": 1},
    "bytes that are no text": lambda: b"\xff\xfe",
    "NaN": lambda: math.nan,
    "infinity in a list": lambda: [1, -math.inf],
    "an integer of 5000 digits": lambda: 10**5000,
    "a decimal that is NaN": lambda: decimal.Decimal("sNaN"),
    "a list that holds itself": ring,
    "a list 10^4 deep": deep,
    "10 MB": lambda: "x" * 10_000_000,
    "10^5 times nothing": lambda: [None] * HUGE,
    "keys of all kinds": lambda: {1: 1, None: 2, (1, 2): 3, b"\xff": 4},
    "a set": lambda: {1},
    "times at the ends": lambda: [datetime.max.replace(tzinfo=UTC), timedelta.max, datetime.min],  # noqa: DTZ901
}
EITHER = frozenset(
    {
        "a set",
        "an object that fights back",
        "times at the ends",
        "a decimal that is NaN",
        "an exception",
        "a dictionary that fights back",
    }
)
"""Results of which it does not matter whether they can be kept: both is right."""

"""Every SQLSTATE that the driver knows, and what a worker makes of it."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from broker_worker.errors import StoreBusyError, StoreDataError, StoreUnavailableError
from broker_worker.store import database
from broker_worker.testing.clock import in_virtual_time

# what a worker waits for, uncharged, until it is over
GONE = {"08000", "08001", "08003", "08004", "08006", "08007", "08P01"}
ENDED = {"57P01", "57P02", "57P03", "57P04", "57P05"}
FULL = {"53000", "53100", "53200", "53300", "53400"}
OF_THE_SYSTEM = {"58000", "58030", "58P01", "58P02", "58P03"}
READ_ONLY = {"25006"}
TRANSIENT = {"40001", "40P01", "57014", "25P03"}
NO_ENTRY = {"28000", "28P01", "3D000"}  # while a password rotates or a database is restored
WAITED_FOR = GONE | ENDED | FULL | OF_THE_SYSTEM | READ_ONLY | TRANSIENT | NO_ENTRY
LOCKED = {"55P03"}  # tried again at once, one by one


def known() -> dict[str, type[Any]]:
    found = [each for each in vars(asyncpg.exceptions).values() if isinstance(each, type)]
    kinds = [each for each in found if issubclass(each, asyncpg.PostgresError)]
    codes = [(getattr(kind, "sqlstate", None), kind) for kind in kinds]
    return {
        code: kind for code, kind in reversed(codes) if isinstance(code, str) and len(code) == len("00000")
    }


KNOWN = known()


def made_of(error: Exception) -> Exception:
    """Return what one of our statements raises when the driver raises `error`."""

    async def fail() -> None:
        with database._translated():
            raise error

    with pytest.raises(Exception) as raised:  # noqa: PT011 - which it is, is asked for
        asyncio.run(fail())
    return raised.value


@in_virtual_time
async def test_a_cancellation_that_the_driver_answers_with_an_error_stays_one() -> None:
    async def roll_back_on_a_lost_connection() -> None:
        with database._translated():
            try:
                await asyncio.sleep(3600)
            finally:
                raise asyncpg.InterfaceError("the connection is closed")

    running = asyncio.ensure_future(roll_back_on_a_lost_connection())
    await asyncio.sleep(1)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running


@in_virtual_time
async def test_a_host_that_says_nothing_is_asked_last_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def connect(url: str, **_: object) -> Silent:
        asked.append(url.partition("@")[2])
        raise TimeoutError

    monkeypatch.setattr(asyncpg, "connect", connect)
    open_one = database.connector(lambda: "postgresql://u:p@one:1,[::1]:2,three/x", "a test")

    for _ in range(4):
        with pytest.raises(TimeoutError):
            await open_one()

    assert asked == ["one:1,[::1]:2,three/x", "[::1]:2,three,one:1/x", "three,one:1,[::1]:2/x", asked[0]]


def test_the_driver_knows_all_that_is_waited_for() -> None:
    # two are newer than the driver
    assert KNOWN.keys() | {"57P05", "08P01"} >= WAITED_FOR | LOCKED


@pytest.mark.parametrize("code", sorted(KNOWN))
def test_each_error_of_postgres_is_one_of_four_kinds(code: str) -> None:
    raised = made_of(KNOWN[code]("it says why\nDETAIL: with values"))

    if code in LOCKED:
        expected: type[Exception] = StoreBusyError
    elif code in WAITED_FOR:
        expected = StoreUnavailableError
    elif code.startswith("22"):
        expected = StoreDataError
    else:
        expected = KNOWN[code]
    assert type(raised) is expected
    assert expected is KNOWN[code] or "values" not in str(raised)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("gone"),
        OSError("no route"),
        TimeoutError(),
        PoolTimeoutError("all are taken"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.ConnectionDoesNotExistError("in the middle of an operation"),
        asyncpg.InternalClientError("no host is as it should be"),
        InterfaceError("SELECT 1", None, asyncpg.InterfaceError("connection is closed")),
        DBAPIError("SELECT 1", None, ConnectionResetError("gone")),
        DBAPIError("SELECT 1", None, Exception("of the server"), connection_invalidated=True),
    ],
    ids=repr,
)
def test_a_connection_that_is_gone_is_waited_for(error: Exception) -> None:
    assert type(made_of(error)) is StoreUnavailableError


@pytest.mark.parametrize("code", ["23505", "42P01", "42501", "XX000"])
def test_what_the_toolkit_wraps_keeps_its_kind(code: str) -> None:
    error = DBAPIError("INSERT", None, KNOWN[code]("refused"))

    assert made_of(error) is error


def test_the_values_that_postgres_refused_are_in_nothing_that_led_to_our_error() -> None:
    raised = made_of(asyncpg.DataError("invalid input for query argument $3: ['4111 1111']"))

    assert "4111" not in "".join(traceback.format_exception(raised))


@in_virtual_time
async def test_a_server_that_falls_silent_before_a_connection_is_settled_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def connect(*_: object, **__: object) -> Silent:
        return Silent()

    monkeypatch.setattr(asyncpg, "connect", connect)
    open_one = database.connector(lambda: "postgresql://u@127.0.0.1/x", "a test", None)

    async with asyncio.timeout(database.COMMAND_TIMEOUT.total_seconds() + 1):
        with pytest.raises(asyncpg.InterfaceError):
            await open_one()


class Silent:
    """A connection whose server says nothing any more."""

    def __init__(self) -> None:
        self._ended = asyncio.get_running_loop().create_future()

    async def settle(self) -> None:
        await self._ended

    def terminate(self) -> None:
        if not self._ended.done():
            self._ended.set_exception(asyncpg.InterfaceError("the connection was closed"))

"""How what is kept up ends, whatever it does of its cancellation."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from broker_worker.amqp.patience import keep_up
from broker_worker.errors import BrokerUnavailableError
from broker_worker.testing.clock import in_virtual_time

LONG = 3600.0  # seconds


async def lives_until_cancelled_and_says_something_else(lives: list[None]) -> None:
    lives.append(None)
    try:
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        raise BrokerUnavailableError("connection refused") from None


@in_virtual_time
async def test_a_cancellation_that_a_life_answers_with_its_own_error_ends_it_all_the_same() -> None:
    lives: list[None] = []
    keeping = asyncio.ensure_future(
        keep_up(partial(lives_until_cancelled_and_says_something_else, lives), asyncio.Event())
    )
    await asyncio.sleep(1)

    keeping.cancel()

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(LONG / 2):
            await keeping
    assert len(lives) == 1

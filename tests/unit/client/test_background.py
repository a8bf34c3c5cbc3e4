"""How the work between a client's calls is ended: in virtual time."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

from broker_worker.client.background import Background
from broker_worker.testing.clock import in_virtual_time


@in_virtual_time
async def test_work_that_does_not_hear_its_cancellation_is_cancelled_again() -> None:
    heard: list[float] = []
    loop = asyncio.get_running_loop()

    async def answers_with_an_error_of_its_own_and_lives_on() -> None:
        while len(heard) < 3:
            with suppress(ConnectionError):
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError as error:
                    heard.append(loop.time())
                    raise ConnectionError from error

    background = Background(answers_with_an_error_of_its_own_and_lives_on, on_end=lambda: None)
    background.need()
    await asyncio.sleep(1)

    async with asyncio.timeout(60):
        await background.close()

    assert len(heard) == 3


@in_virtual_time
async def test_what_work_ends_with_when_it_is_closed_is_nobodys_trouble() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))

    async def fail_in_cleanup() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ConnectionError("closed")

    background = Background(fail_in_cleanup, on_end=lambda: None)
    background.need()
    await asyncio.sleep(1)

    await background.close()
    del background
    gc.collect()

    assert complaints == []

"""What a daemon without work asks of its servers, counted by its own heartbeat and not in seconds."""

from __future__ import annotations

import asyncpg
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until
from tests.support.wires import Ack, Published, wires

pytestmark = pytest.mark.timeout(300)

BEATS = 3
TRANSACTIONS = 20  # at most for one beat: two each of the heartbeat, and some of the relay and the rescuer
FRAMES = 5  # now and then it asks how many messages are ready


async def whatever(_observer: asyncpg.Connection, _ack: Ack, _published: Published) -> list[str]:
    return []


def beat(service: Service) -> int:
    (row,) = service.rows("SELECT beat FROM workers")
    count: int = row["beat"]
    return count


def test_a_daemon_without_work_asks_little_of_its_servers(service: Service) -> None:
    with wires(service.amqp_url, service.database_url, whatever) as seen, service.running:
        service.start(AMQP_URL=seen.amqp_url, DATABASE_URL=seen.database_url)
        service.publish(message("double", "t-1", {"x": 1}))
        service.until_states(succeeded=1)
        begun = beat(service)
        before = seen.transactions, seen.frames

        until("the heart has beaten", lambda: beat(service) >= begun + BEATS)

        transactions, frames = seen.transactions - before[0], seen.frames - before[1]
        assert (transactions <= BEATS * TRANSACTIONS, frames <= BEATS * FRAMES) == (True, True), (
            f"{transactions} transactions and {frames} frames in {BEATS} beats"
        )
        assert transactions >= BEATS
        assert seen.faults == []

"""An outbox that is long: of what waits until later, and of what nobody needs any more."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg

from tests.support.inbox import a_message, opened

MANY = 20_000
FEW = 300  # far more than a turn has to look at, and far less than there are
LATER = """
INSERT INTO {schema}.outbox (kind, routing_key, deliver_at, available_at)
SELECT 'copy', 'email', now() + interval '3 days', now() + interval '3 days' FROM generate_series(1, :many)
"""
LEFT_LYING = "UPDATE {schema}.outbox SET available_at = now() - interval '1 h' + interval '1 s' * id"
READ = """
SELECT idx_scan, idx_tup_read FROM pg_stat_user_indexes
WHERE indexrelname = 'outbox_available' AND schemaname = 'broker_worker'
"""


async def test_a_turn_does_not_look_at_what_waits_until_later(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.execute(LATER, many=MANY)
        await inbox.execute("ANALYZE {schema}.outbox")
        assert await inbox.relay() == []

    connection = await asyncpg.connect(database_url)
    try:
        while not (row := await connection.fetchrow(READ))["idx_scan"]:
            await asyncio.sleep(0.01)  # until the connections that did it have reported
    finally:
        await connection.close()
    assert row["idx_tup_read"] < FEW


async def test_copies_that_nobody_needs_any_more_cost_no_turn(database_url: str) -> None:
    async with opened(database_url) as inbox:
        for number in range(30):
            await inbox.postpone(a_message(f"t-{number}"), timedelta(0))
        await inbox.execute("UPDATE {schema}.tasks SET epoch = epoch + 1 WHERE key <= 25")
        await inbox.execute(LEFT_LYING)

        taken = await inbox.outbox.take(5)
        left = await inbox.count("outbox")

    assert [each.outgoing.properties.headers["bw-task-id"] for each in taken] == [
        f"t-{number}" for number in range(25, 30)
    ]
    assert left == 5

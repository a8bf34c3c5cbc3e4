"""LISTEN and NOTIFY: who waits for something in the database hears of it, where a connection of its own allows.

A notification saves time and carries no duty: it can be lost with a connection, and a
transaction pooler has none. Whoever listens therefore also looks, less often.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


async def notify(connection: AsyncConnection, schema_name: str, *payloads: str) -> None:
    """Send `payloads` to all who listen on the schema, with the commit of the caller's transaction."""
    await connection.execute(
        text("SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS n(payload)"),
        {"channel": schema_name, "payloads": list(payloads)},
    )

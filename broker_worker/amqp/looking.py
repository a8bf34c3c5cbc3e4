"""Looking at the broker without any right to change it."""

from __future__ import annotations

import asyncio

import aiormq

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import Connection
from broker_worker.amqp.failures import translated

DEADLINE = 10.0  # seconds


async def has_queue(connection: Connection, name: str) -> bool:
    """Say whether a queue of this full name exists; needs no rights.

    Raises:
        BrokerUnavailableError: the broker can't say now.
    """
    with translated(f"looking for queue {name}"):
        async with asyncio.timeout(DEADLINE):
            channel = await open_channel(connection.wire, plain_channel)
            try:
                await channel.queue_declare(name, passive=True)
            except aiormq.ChannelNotFoundEntity as error:
                if "no queue" in str(error):
                    return False
                raise  # it exists and its node is down
            await channel.close()
    return True

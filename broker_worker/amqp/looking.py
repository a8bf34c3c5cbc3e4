"""Looking at the broker without any right to change it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiormq

from broker_worker.amqp.channel import OwnChannel, open_channel, plain_channel
from broker_worker.amqp.connection import Connection
from broker_worker.amqp.failures import translated
from broker_worker.errors import BrokerUnavailableError

DEADLINE = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class QueueLook:
    """What the broker says of a queue: messages that wait, and consumers that it knows."""

    ready: int
    consumers: int


class Looks:
    """Looks at queues over one channel of a connection; another one after each refusal, which costs it."""

    def __init__(self, connection: Connection, *, deadline: float = DEADLINE) -> None:
        self._connection = connection
        self._deadline = deadline
        self._channel: OwnChannel | None = None
        self._may_look = True
        self.is_deaf = False  # whether the broker did not even open a channel when it was last asked to
        self._one_at_a_time = asyncio.Lock()

    async def look(self, name: str) -> QueueLook | None:
        """Look at a queue by its full name; nothing where there is none. Needs no right, but on 4.3.0.

        Raises:
            BrokerUnavailableError: the broker can't say now.
        """
        if not self._may_look:
            raise BrokerUnavailableError(f"looking at queue {name} is not allowed")
        with translated(f"looking at queue {name}"):
            async with asyncio.timeout(self._deadline), self._one_at_a_time:
                channel = await self._opened()
                try:
                    answer = await channel.queue_declare(name, passive=True)
                except aiormq.ChannelNotFoundEntity as error:
                    if "no queue" in str(error):
                        return None
                    raise  # it exists and its node is down
                except aiormq.ChannelAccessRefused:
                    self._may_look = False  # nor the next time: each refusal costs a channel
                    raise
                except asyncio.CancelledError:
                    channel.leave()  # a request that is given up has closed it
                    raise
        return QueueLook(ready=answer.message_count or 0, consumers=answer.consumer_count or 0)

    async def close(self) -> None:
        """Give the channel back."""
        if self._channel is not None and self._channel.is_alive:
            with translated("closing a channel"):
                async with asyncio.timeout(self._deadline):
                    await self._channel.close()

    async def _opened(self) -> OwnChannel:
        if self._channel is None or not self._channel.is_alive:
            self.is_deaf = True
            self._channel = await open_channel(self._connection.wire, plain_channel)
            self.is_deaf = False
        return self._channel


async def has_queue(connection: Connection, name: str) -> bool:
    """Say whether a queue of this full name exists; needs no rights.

    Raises:
        BrokerUnavailableError: the broker can't say now.
    """
    looks = Looks(connection)
    found = await looks.look(name)
    await looks.close()
    return found is not None

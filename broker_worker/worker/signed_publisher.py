"""Copies that vouch for themselves: the queues that they go to may ask for signatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker_worker.errors import PublishError
from broker_worker.outgoing import Outgoing
from broker_worker.ports import Publisher
from broker_worker.signing import Keyring, signed_copy


@dataclass(frozen=True, slots=True)
class SignedPublisher:
    """Signs on the way out, by the first key of that moment; satisfies `ports.Publisher`.

    Nothing that lies in the database for long is signed there: its key may be gone when it leaves.
    """

    publisher: Publisher
    keyring: Keyring

    async def publish(self, outgoing: Outgoing) -> None:
        """As the publisher that it stands for."""
        await self.publisher.publish(signed_copy(outgoing, self.keyring))

    def begin(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        """As the publisher that it stands for."""
        return self.publisher.begin(signed_copy(outgoing, self.keyring), done)

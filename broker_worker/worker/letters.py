"""Reads the queues of dead letters: our own are known, the broker's are arrivals, others are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from broker_worker.dead_letter import LETTER_ID, letter_of_stranger
from broker_worker.errors import StoreUnavailableError
from broker_worker.events import DeliverySettled, Emit
from broker_worker.message import Properties, UntakenBody
from broker_worker.outcome import Failure, Reason
from broker_worker.ports import Clock, Delivery, TaskStore
from broker_worker.task import Poisoning
from broker_worker.worker.patience import Patience
from broker_worker.worker.processor import Processor
from broker_worker.worker.slots import Slots


class LetterDelivery(Delivery, Protocol):
    """A delivery that also says by which way it came."""

    @property
    def exchange(self) -> str: ...

    @property
    def routing_key(self) -> str: ...


class KnownLetters(Protocol):
    """The dead letters that the database has."""

    async def knows(self, letter: UUID, body: bytes) -> bool:
        """Whether this letter, with this body, is there."""


@dataclass(frozen=True, slots=True)
class Rerouted:
    """A delivery from a queue of last resort, seen as the arrival in the queue that it was meant for."""

    origin: LetterDelivery
    queue: str
    poisoning: Poisoning | None

    @property
    def properties(self) -> Properties:
        return self.origin.properties

    @property
    def body(self) -> bytes:
        return self.origin.body

    @property
    def redelivered(self) -> bool:
        return self.origin.redelivered

    @property
    def is_alive(self) -> bool:
        return self.origin.is_alive

    async def ack(self) -> None:
        """Let the broker forget the message."""
        await self.origin.ack()


class LetterReader:
    """Empties the dead-letter queues of this service into the database."""

    def __init__(
        self,
        processor: Processor,
        tasks: TaskStore,
        letters: KnownLetters,
        *,
        dead_letter_exchange: str,
        unroutable: str,
        queue_by_dead_queue: Mapping[str, str],
        clock: Clock,
        random: Callable[[], float],
        emit: Emit,
    ) -> None:
        """Know the queue of what led nowhere, and the queues of dead letters with their work queues."""
        self._processor = processor
        self._tasks = tasks
        self._letters = letters
        self._dead_letter_exchange = dead_letter_exchange
        self._unroutable = unroutable
        self._queue_by_dead_queue = queue_by_dead_queue
        self._clock = clock
        self._random = random
        self._emit = emit
        self._slots = Slots(1)  # never needed: nothing that comes this way is run from here

    async def process(self, delivery: LetterDelivery) -> None:
        """Carry one letter to where it belongs, then ack it.

        A body that was not taken goes on to the queue where such messages stay.
        """
        patience = Patience(self._clock, self._random)
        while delivery.is_alive:
            try:
                if await self._is_known(delivery):
                    await delivery.ack()
                    return
                if (arrival := self._as_arrival(delivery)) is not None:
                    await self._processor.process(arrival, self._slots)
                    return
                await self._keep(delivery)
                await delivery.ack()
            except StoreUnavailableError:
                await patience.pause()
                continue
            return

    async def _is_known(self, delivery: LetterDelivery) -> bool:
        claimed = delivery.properties.headers.get(LETTER_ID)
        try:
            letter = UUID(claimed) if isinstance(claimed, str) else None
        except ValueError:
            letter = None
        return letter is not None and await self._letters.knows(letter, delivery.body)

    def _as_arrival(self, delivery: LetterDelivery) -> Rerouted | None:
        """See what the broker gave up, or could not route, as an arrival in its work queue."""
        if delivery.queue == self._unroutable:
            if delivery.exchange == self._dead_letter_exchange:
                return None
            return Rerouted(delivery, delivery.routing_key, Poisoning.UNROUTABLE)
        poisoning = delivery.poisoning
        if poisoning is None:
            return None
        return Rerouted(delivery, self._queue_by_dead_queue[delivery.queue], poisoning)

    async def _keep(self, delivery: LetterDelivery) -> None:
        """Insert a letter that somebody else wrote; never merged with another."""
        headers = delivery.properties.headers
        meant_for = delivery.routing_key.partition(".")[0] or delivery.queue
        queue = self._queue_by_dead_queue.get(delivery.queue, meant_for)
        reason = _reason(headers.get("bw-reason"))
        failure = Failure("ForeignLetter", "another program put this message among the dead letters")
        if isinstance(delivery.body, UntakenBody):  # nearly always known: whoever met it first wrote the same
            reason = Reason.OVERSIZE
            failure = Failure(
                "OversizeLetter", f"a dead letter of {delivery.body.size} bytes: RabbitMQ has it"
            )
        letter = letter_of_stranger(
            delivery.properties, delivery.body, queue=queue, reason=reason, failure=failure
        )
        await self._tasks.bury(letter, is_published=True)
        self._emit(DeliverySettled(queue, letter.name, letter.message_id, "foreign_letter"))


def _reason(value: object) -> Reason:
    return Reason(value) if isinstance(value, str) and value in set(Reason) else Reason.UNROUTABLE

"""One arrival of a message, and how its ack reaches the broker."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from pamqp import commands

from broker_worker.amqp.channel import WRITER_IS_FULL, ConsumingChannel
from broker_worker.amqp.delivery_stream import Delivered
from broker_worker.amqp.properties import decode_properties
from broker_worker.amqp.topology import POISON
from broker_worker.message import Properties, UntakenBody
from broker_worker.task import Poisoning


class Acker:
    """Acks for one channel: gathered during one turn of the event loop, then sent.

    A contiguous run of settled tags goes out as one ack with `multiple`; that ack
    names a tag that is neither above an unsettled one nor acked before, because
    the broker would take the first as done and close the channel for the second.
    """

    def __init__(self, channel: ConsumingChannel, changed: Callable[[], None] | None = None) -> None:
        """Ack on `channel`, whose deliveries all have to be announced by `delivered`."""
        self._channel = channel
        self._changed = changed or (lambda: None)
        self._open: dict[int, None] = {}  # not settled; in the order of the tags
        self._settled: set[int] = set()  # to be acked
        self._flush: asyncio.Handle | None = None

    @property
    def is_alive(self) -> bool:
        """Whether an ack can still reach the broker."""
        return self._channel.is_alive

    @property
    def unsettled(self) -> int:
        """How many deliveries are not settled: what counts against the prefetch."""
        return len(self._open)

    def delivered(self, tag: int) -> None:
        """Note a new delivery; tags come in order."""
        self._open[tag] = None
        self._changed()

    def settle(self, tag: int) -> None:
        """Ack `tag` within this turn of the loop; nothing happens if that was done or the channel is gone."""
        if tag not in self._open:
            return
        del self._open[tag]
        self._settled.add(tag)
        if self._flush is None:
            self._flush = self._channel.loop.call_soon(self.flush)

    def release(self, tag: int) -> None:
        """Give `tag` back to its queue at once.

        Where there is no room for the frame it stays open, so that no later ack with `multiple` takes it
        along.
        """
        is_open = tag in self._open and self._channel.is_alive
        if is_open and self._channel.send(commands.Basic.Nack(tag, requeue=True)):
            del self._open[tag]
            self._changed()

    def set_aside(self, tag: int) -> None:
        """Have the broker dead-letter `tag`.

        Where there is no room for the frame it is tried again, and stays open, so that no later ack with
        `multiple` takes it along.
        """
        if tag not in self._open or not self._channel.is_alive:
            return
        if self._channel.send(commands.Basic.Nack(tag, requeue=False)):
            del self._open[tag]
            self._changed()
        else:
            self._channel.loop.call_later(WRITER_IS_FULL, self.set_aside, tag)

    def flush(self) -> None:
        """Send what is settled."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._changed()
        if not self._channel.is_alive:
            self._settled.clear()
            return
        for acked in self._acks():
            if not self._channel.send(commands.Basic.Ack(acked[-1], multiple=len(acked) > 1)):
                self._flush = self._channel.loop.call_later(WRITER_IS_FULL, self.flush)
                return
            self._settled.difference_update(acked)

    def _acks(self) -> list[list[int]]:
        """Split what is settled into acks: one for all below every open tag, one for each above."""
        lowest_open = next(iter(self._open), None)
        settled = sorted(self._settled)
        end = len(settled) if lowest_open is None else bisect_left(settled, lowest_open)
        return [each for each in (settled[:end], *([tag] for tag in settled[end:])) if each]


class AmqpDelivery:
    """One arrival; satisfies `ports.Delivery`. Properties are decoded when they are first asked for."""

    def __init__(
        self, queue: str, acker: Acker, work_queue: Callable[[str], str], delivered: Delivered
    ) -> None:
        """Wrap what the channel read; `work_queue` names the work queue of a name."""
        self.queue = queue
        self._acker = acker
        self._work_queue = work_queue
        # the exchange and the key are those by which it came into its queue last
        self._tag, self.redelivered, self.exchange, self.routing_key, self._header, self.body = delivered
        self._properties: Properties | None = None

    @property
    def properties(self) -> Properties:
        """What the message travelled with."""
        if self._properties is None:
            self._properties = decode_properties(self._header)
        return self._properties

    @property
    def is_alive(self) -> bool:
        """Whether an ack can still reach the broker."""
        return self._acker.is_alive

    @property
    def poisoning(self) -> Poisoning | None:
        """Why the broker gave this message of a work queue up, if it did."""
        return read_poisoning(self.routing_key, self.properties.headers, self._work_queue)

    async def ack(self) -> None:
        """Let the broker forget the message, or put it where its own letters are, if we have not taken it.

        Never raises, never waits.
        """
        if isinstance(self.body, UntakenBody):
            self._acker.set_aside(self._tag)
        else:
            self._acker.settle(self._tag)

    def release(self) -> None:
        """Give the message back to its queue at once; if the channel is gone, it went back by itself."""
        self._acker.release(self._tag)


def read_poisoning(
    routing_key: str, headers: Mapping[str, object], work_queue: Callable[[str], str]
) -> Poisoning | None:
    """Say why the broker dead-lettered a message out of a work queue, if that is what happened.

    Our own dead letters have other keys. Deaths in a delay queue are how a delay
    ends and mean nothing. A publisher may have written anything into these headers.
    """
    if not routing_key.endswith(f".{POISON}"):
        return None
    queue = work_queue(routing_key.removesuffix(f".{POISON}"))
    for died_in, reason in _deaths(headers):
        if died_in == queue and isinstance(reason, str) and reason in set(Poisoning):
            return Poisoning(reason)
    return None


def _deaths(headers: Mapping[str, object]) -> Iterator[tuple[object, object]]:
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else []:
        if isinstance(death, dict):
            yield death.get("queue"), death.get("reason")
    yield headers.get("x-last-death-queue"), headers.get("x-last-death-reason")
    yield headers.get("x-first-death-queue"), headers.get("x-first-death-reason")

"""Mistakes below what the simulation runs: in the client of RabbitMQ and in the statements to Postgres."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

from pamqp import commands

from broker_worker.amqp.delivery import Acker
from broker_worker.amqp.publishing_channel import PublishingChannel
from broker_worker.message import publisher_headers
from broker_worker.outcome import Succeeded
from broker_worker.ports import Delivery
from broker_worker.store.transactions import Transaction
from broker_worker.worker import executor
from broker_worker.worker.processor import Processor
from tests.faults.mutants.mutant import Mutant, function, method, together
from tests.faults.mutants.publishing import keep_all_headers


def _ack_before_the_claim(claim: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def mutated(self: Processor, delivery: Delivery, *rest: object) -> object:
        await delivery.ack()
        return await claim(self, delivery, *rest)

    return mutated


def _all_in_one(_: Callable[..., list[list[int]]]) -> Callable[..., list[list[int]]]:
    return lambda self: [sorted(self._settled)] if self._settled else []


_left: set[int] = set()  # tags whose ack did not leave on their own channel


def _keep_what_could_not_be_sent(flush: Callable[..., None]) -> Callable[..., None]:
    def mutated(self: Acker) -> None:
        if not self.is_alive:
            _left.update(self._settled)
        flush(self)

    return mutated


def _send_it_by_the_next_channel(delivered: Callable[..., None]) -> Callable[..., None]:
    def mutated(self: Acker, tag: int) -> None:
        delivered(self, tag)
        for left in sorted(_left):
            self._channel.send(commands.Basic.Ack(left, multiple=False))
        _left.clear()

    return mutated


def _read_and_forget(_: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def mutated(self: PublishingChannel, frame: commands.Basic.Return) -> None:
        header: Any = await self._get_frame()
        await self._read_content(frame, header)

    return mutated


def _confirmed_at_once(send: Callable[..., Any]) -> Callable[..., Any]:
    def mutated(self: PublishingChannel, *arguments: Any) -> Any:  # noqa: ANN401 - as the original
        confirmed = send(self, *arguments)
        confirmed.set_result(None)
        return confirmed

    return mutated


def _commit_the_handlers_alone(_: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def mutated(self: Transaction, outcome: Succeeded) -> None:
        await self._connection.commit()
        self._is_committed = True

    return mutated


def _leave_it_unrecorded(value: Any, **changes: Any) -> Any:  # noqa: ANN401 - as the original
    return value if isinstance(value, Succeeded) else dataclasses.replace(value, **changes)


MUTANTS = (
    Mutant(
        "ack first",
        "the delivery is acked when it arrives, before anything is committed",
        "I4",
        method(Processor, "_claim", _ack_before_the_claim),
    ),
    Mutant(
        "one ack for all",
        "all that is settled goes out as one ack with `multiple`, which names what runs as well",
        "I4",
        method(Acker, "_acks", _all_in_one),
    ),
    Mutant(
        "ack on a stale channel",
        "an ack that could not leave on its own channel is sent by the next one",
        "I4",
        together(
            method(Acker, "flush", _keep_what_could_not_be_sent),
            method(Acker, "delivered", _send_it_by_the_next_channel),
        ),
    ),
    Mutant(
        "returns are ignored",
        "a message that the broker returned counts as confirmed, because its confirm follows",
        "I5",
        method(PublishingChannel, "_on_return_frame", _read_and_forget),
    ),
    Mutant(
        "publish without the confirm",
        "a publish is over when it is written, and its outbox row is deleted",
        "I5",
        method(PublishingChannel, "_send", _confirmed_at_once),
    ),
    Mutant(
        "headers of the broker are copied",
        "a copy carries on what the broker wrote into the headers, by which it drops cycles",
        "I16",
        function(publisher_headers, keep_all_headers),
    ),
    Mutant(
        "a transaction of its own for the outcome",
        "a handler's writes are committed first, and the end of its task after that",
        "I6",
        together(
            method(Transaction, "commit", _commit_the_handlers_alone),
            lambda: mock.patch.object(executor, "replace", _leave_it_unrecorded),
        ),
    ),
)

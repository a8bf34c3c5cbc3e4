"""Mistakes about acks: too early, too late, by the wrong channel, for the wrong reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from broker_worker.errors import StoreUnavailableError
from broker_worker.outcome import Outcome
from broker_worker.ports import Delivery
from broker_worker.step import Claim, step_of_decision
from broker_worker.task import GivenBody, Holder
from broker_worker.worker.intake import Intake
from broker_worker.worker.processor import Processor
from broker_worker.worker.runs import Runs
from tests.faults.mutants.mutant import Mutant, function, method
from tests.simulation.adapters import SimulatedDelivery

Wrapped = Callable[..., Awaitable[Any]]


def _ack_before_the_claim(claim: Wrapped) -> Wrapped:
    async def mutated(self: Processor, delivery: Delivery, *rest: object) -> Claim | None:
        await delivery.ack()
        found: Claim | None = await claim(self, delivery, *rest)
        return found

    return mutated


def _ack_before_the_record(record: Wrapped) -> Wrapped:
    async def mutated(self: Processor, claim: Claim, outcome: Outcome, *, seconds: float) -> bool:
        delivery = self._runs._run_by_claim[claim.key, claim.epoch].delivery
        await delivery.ack()
        is_recorded: bool = await record(self, claim, outcome, seconds=seconds)
        return is_recorded

    return mutated


def _swallow_the_error_of_the_record(_: Wrapped) -> Wrapped:
    async def mutated(self: Processor, claim: Claim, outcome: Outcome, *, seconds: float) -> bool:
        try:
            return await self._tasks.record(claim, outcome) is not None
        except StoreUnavailableError:
            return True  # it will have been written

    return mutated


def _settle_what_was_cancelled(carry: Wrapped) -> Wrapped:
    async def mutated(self: Intake, delivery: Delivery) -> None:
        try:
            await carry(self, delivery)
        except asyncio.CancelledError:
            await delivery.ack()  # what `async with message.process()` does, by a reject
            raise

    return mutated


def _ack_by_the_newest_channel(_: Wrapped) -> Wrapped:
    async def mutated(self: SimulatedDelivery) -> None:
        channels = [
            channel
            for connection in self.process.connections
            for channel in connection.channels
            if channel.is_usable and channel.queue is self.channel.queue
        ]
        if channels:
            channels[-1].ack(self.tag)

    return mutated


def _never_adrift(_: Callable[..., Holder]) -> Callable[..., Holder]:
    def mutated(self: Runs, key: int, epoch: int) -> Holder:
        return Holder.HERE if (key, epoch) in self._run_by_claim else Holder.HERE_FORGOTTEN

    return mutated


def _give_no_body(decision: object, *rest: object, **named: Any) -> Any:  # noqa: ANN401 - as the original
    return None if isinstance(decision, GivenBody) else step_of_decision(decision, *rest, **named)  # type: ignore[arg-type]


MUTANTS = (
    Mutant(
        "ack first",
        "the delivery is acked when it arrives, before anything is committed",
        "I4",
        method(Processor, "_claim", _ack_before_the_claim),
    ),
    Mutant(
        "ack before the outcome",
        "the delivery is acked when the handler has ended, before its outcome is committed",
        "I4",
        method(Processor, "_record", _ack_before_the_record),
    ),
    Mutant(
        "swallowed error of the record",
        "an outcome that could not be written is taken for written",
        "I4",
        method(Processor, "_record", _swallow_the_error_of_the_record),
    ),
    Mutant(
        "swallowed error of the ack",
        "a run trusts in its ack, although the channel is gone: the redelivery counts as a duplicate",
        "I4",
        method(Runs, "recall", _never_adrift),
    ),
    Mutant(
        "cancelled is settled",
        "a delivery whose task is cancelled at the worker's end is dropped and not left to go back",
        "I4",
        method(Intake, "_carry", _settle_what_was_cancelled),
    ),
    Mutant(
        "ack on a stale channel",
        "a delivery is acked by its queue's newest channel, where its tag names another or none",
        "I4",
        method(SimulatedDelivery, "ack", _ack_by_the_newest_channel),
    ),
    Mutant(
        "no body for the rescuer",
        "what another worker runs is acked, and its row does not get the body that a rescue needs",
        "I4",
        function(step_of_decision, _give_no_body),
    ),
)

"""The path of one delivery: decode, claim, execute, record, ack."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from uuid import uuid4

from broker_worker.dead_letter import letter_of_stranger
from broker_worker.errors import PublishError, StoreDataError, StoreUnavailableError, UnpublishableError
from broker_worker.events import (
    AttemptFinished,
    AttemptStarted,
    DeliverySettled,
    Emit,
    PublishFailed,
    ServiceFailed,
)
from broker_worker.failure import Refusal
from broker_worker.handler import Handler, Limits, LimitsByHandler
from broker_worker.message import Message, Undecodable, Unidentified, decode, stamped_properties
from broker_worker.outcome import Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.payload import Arguments
from broker_worker.ports import Clock, Delivery, Publisher, TaskStore
from broker_worker.registry import Registry
from broker_worker.reply import is_allowed
from broker_worker.signing import Signatures
from broker_worker.step import Claim
from broker_worker.task import (
    Adopted,
    Arrival,
    CancelledBefore,
    Conflicting,
    Decision,
    Duplicate,
    Expired,
    GivenBody,
    Lane,
    NeedsLane,
    NeedsSlot,
    Poisoning,
    PutOff,
    Reemitted,
    Refused,
)
from broker_worker.values import dataclass
from broker_worker.worker.executor import Executor
from broker_worker.worker.patience import Patience
from broker_worker.worker.runs import Runs
from broker_worker.worker.slots import Slot, Slots

# a member of an enumeration costs 0.4 µs a look in Python 3.11
FREE, UNROUTABLE = Lane.FREE, Poisoning.UNROUTABLE


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say about deliveries."""

    limits: Limits
    max_body_bytes: int
    queues: Collection[str]
    reply_to: Sequence[str]  # names or patterns of queues that replies may go to
    signatures: Signatures | None = None  # where there are queues that ask for them


@dataclass(frozen=True, slots=True)
class Prepared:
    """What this process could do with a message: run it, or say why not."""

    max_attempts: int
    most_attempts: int = 0  # by the policies for some errors
    deadline: timedelta | None = None
    handler: Handler | None = None
    arguments: Arguments | None = None
    refusal: Refusal | None = None


class Processor:
    """Carries deliveries to a settled outcome; one for all queues of a process."""

    def __init__(
        self,
        *,
        registry: Registry,
        rules: Rules,
        tasks: TaskStore,
        publisher: Publisher,
        executor: Executor,
        runs: Runs,
        clock: Clock,
        random: Callable[[], float],
        emit: Emit,
    ) -> None:
        self._registry = registry
        self._rules = rules
        self._limits = LimitsByHandler(rules.limits)
        self._tasks = tasks
        self._publisher = publisher
        self._executor = executor
        self._runs = runs
        self._clock = clock
        self._random = random
        self._emit = emit
        self._lane = asyncio.Lock()  # crashers run alone

    async def process(self, delivery: Delivery, slots: Slots) -> None:
        """Carry one delivery to a settled outcome.

        Order is the guarantee: the outcome is committed before the broker may forget
        the delivery, so a crash at any line means a repeat, never a loss. Cancelled, a
        claim stays in `runs`; whoever cancelled releases it.
        """
        message = self._decode(delivery)
        if self._rules.signatures is not None:
            doubtful = self._rules.signatures.doubt(
                message, queue=delivery.queue, properties=delivery.properties, body=delivery.body
            )
            if doubtful is not None:
                return await self._bury(delivery, doubtful)
        if isinstance(message, Unidentified):
            return await self._stamp(delivery, message)
        if isinstance(message, Undecodable) and message.message is None:
            return await self._bury(delivery, message)
        message, prepared = self._prepare(delivery, message)
        with slots.slot() as slot:
            claim = await self._claim(delivery, message, prepared, slot)
            if claim is None:
                return None
            started = self._clock.monotonic()
            outcome = await self._execute(claim, prepared, slot)
            is_recorded = await self._record(claim, outcome, seconds=self._clock.monotonic() - started)
        return await self._ack(claim, slots, is_recorded=is_recorded)

    async def start_over(self, delivery: Delivery, slots: Slots) -> None:
        """Process a delivery again after an error of ours.

        What its handler led to is recorded now; a claim that came to nothing is released, which is counted.
        A delivery that only took the place of another is left to the run that has it.
        """
        run = self._runs.led_to_by(delivery)
        if run is not None and run.origin is delivery:
            is_recorded = await self._record(run.claim, run.outcome or Released(), seconds=0.0)
            await self._ack(run.claim, slots, is_recorded=is_recorded)
        elif run is None and delivery.is_alive:
            await self.process(delivery, slots)

    # --- decode --------------------------------------------------------------------

    def _decode(self, delivery: Delivery) -> Message | Unidentified | Undecodable:
        return decode(
            delivery.properties,
            delivery.body,
            queue=delivery.queue,
            now=self._clock.now(),
            max_body_bytes=self._rules.max_body_bytes,
            default_name=self._registry.default_name(delivery.queue),
        )

    async def _stamp(self, delivery: Delivery, message: Unidentified) -> None:
        """Give a message without an id one, by sending it once more to its own queue.

        A crash between the confirm and the ack makes two tasks of it.
        """
        properties = stamped_properties(
            delivery.properties,
            name=message.name,
            task_id=str(uuid4()),
            now=self._clock.now(),
            is_expired=delivery.poisoning is Poisoning.EXPIRED,
        )
        outgoing = Outgoing(Kind.COPY, delivery.queue, properties, delivery.body)
        patience = Patience(self._clock, self._random)
        while delivery.is_alive:
            try:
                await self._publisher.publish(outgoing)
            except UnpublishableError as error:
                failure = Failure("ContractError", str(error))
                await self._bury(delivery, Undecodable(Reason.MALFORMED, failure))
                return
            except PublishError as error:
                self._emit(PublishFailed(Kind.COPY, delivery.queue, str(error)))
                await patience.pause()
                continue
            await delivery.ack()
            self._emit(DeliverySettled(delivery.queue, message.name, None, "stamped"))
            return

    async def _bury(self, delivery: Delivery, message: Undecodable) -> None:
        """Keep a message that can't be a task as a dead letter."""
        letter = letter_of_stranger(
            delivery.properties,
            delivery.body,
            queue=delivery.queue,
            reason=message.reason,
            failure=message.failure,
            task=message.message.task if message.message is not None else None,
        )
        patience = Patience(self._clock, self._random)
        while delivery.is_alive:
            try:
                await self._tasks.bury(letter)
            except StoreUnavailableError:
                await patience.pause()
                continue
            await delivery.ack()
            self._emit(DeliverySettled(delivery.queue, letter.name, None, "refused", message.reason))
            return

    def _prepare(self, delivery: Delivery, message: Message | Undecodable) -> tuple[Message, Prepared]:
        """Find the handler and read the payload; what is refused is decided under the row's lock."""
        policy = self._rules.limits.policy
        if isinstance(message, Undecodable):
            assert message.message is not None  # noqa: S101 - process() saw to it
            return message.message, Prepared(
                policy.max_attempts, refusal=Refusal(message.reason, message.failure)
            )
        handler = self._registry.lookup(message.task.name)
        if delivery.poisoning is UNROUTABLE and message.task.queue not in self._rules.queues:
            failure = Failure("Unroutable", f"no queue has the routing key {message.task.queue[:100]!r}")
            return message, Prepared(policy.max_attempts, refusal=Refusal(Reason.UNROUTABLE, failure))
        if handler is None:
            failure = Failure("UnknownTask", f"no handler is registered for {message.task.name!r}")
            return message, Prepared(policy.max_attempts, refusal=Refusal(Reason.UNKNOWN_TASK, failure))
        limits = self._limits.of(handler)
        policy = limits.policy
        arguments, refusal = None, None
        try:
            arguments = handler.bind(message.body, message.media_type)
        except Refusal as refused:
            refusal = refused
        return message, Prepared(
            policy.max_attempts, policy.most_attempts, limits.deadline, handler, arguments, refusal
        )

    # --- claim ---------------------------------------------------------------------

    async def _claim(
        self, delivery: Delivery, message: Message, prepared: Prepared, slot: Slot
    ) -> Claim | None:
        """Meet the row: come back with a claim, or settle the delivery and come back with nothing."""
        digest = message.digest()
        patience = Patience(self._clock, self._random)
        while True:
            arrival = Arrival(
                message=message,
                digest=digest,
                max_attempts=prepared.max_attempts,
                most_attempts=prepared.most_attempts,
                deadline=prepared.deadline,
                refusal=prepared.refusal,
                poisoning=delivery.poisoning,
                has_slot=slot.is_held,
                lane=Lane.HELD if slot.is_alone else Lane.BUSY if self._lane.locked() else FREE,
                keeps_reply=is_allowed(message.reply_to, self._rules.reply_to),
            )
            try:
                met = await self._tasks.arrive(arrival, delivery)
            except StoreUnavailableError:
                await patience.pause()
            except StoreDataError as error:
                failure = Failure("StoreDataError", str(error))
                await self._bury(delivery, Undecodable(Reason.MALFORMED, failure))
                return None
            else:
                if met.claim is not None:
                    return met.claim
                if not await self._wait_for_turn(met.decision, slot):
                    await self._settle(delivery, message, met.decision)
                    return None
            if not delivery.is_alive:
                return None

    async def _wait_for_turn(self, decision: Decision, slot: Slot) -> bool:
        """Wait for what a decision still needs; false where it needs nothing."""
        match decision:
            case NeedsSlot():
                await slot.acquire()
            case NeedsLane():
                await slot.acquire_lane(self._lane)
            case _:
                return False
        return True

    async def _settle(self, delivery: Delivery, message: Message, decision: Decision) -> None:
        """Ack what needs no run; what a run of ours adopted is acked at that run's end."""
        how, detail = _how(decision)
        if not isinstance(decision, Adopted):
            await delivery.ack()
        self._emit(DeliverySettled(delivery.queue, message.task.name, message.task.id, how, detail))

    # --- execute -------------------------------------------------------------------

    def _execute(self, claim: Claim, prepared: Prepared, slot: Slot) -> Awaitable[Outcome]:
        assert prepared.handler is not None  # noqa: S101 - without one there is a refusal and no claim
        published_at = claim.message.published_at if claim.attempt == 1 else None
        waited = self._clock.now() - published_at if published_at is not None else None
        self._emit(AttemptStarted(claim.row.id, claim.attempt, waited, claim.message.trace_id))
        return self._executor.execute(
            prepared.handler,
            prepared.arguments or {},
            claim,
            stop=self._runs.stop_of(claim),
            leave=slot.write_off,
        )

    # --- record and ack ------------------------------------------------------------

    async def _record(self, claim: Claim, outcome: Outcome, *, seconds: float) -> bool:
        """Hold the outcome until it is written or the claim is lost: the handler is not run again for us."""
        self._runs.conclude(claim, outcome)
        patience = Patience(self._clock, self._random)
        while True:
            try:
                recorded = await self._tasks.record(claim, outcome)
            except StoreUnavailableError:
                await patience.pause()
            except StoreDataError as error:
                if (reduced := _without_values(outcome, error)) == outcome:  # it is nothing of the outcome's
                    self._emit(ServiceFailed("record", error))
                    await patience.pause()
                outcome = reduced
                self._runs.conclude(claim, outcome)
            except Exception as error:  # noqa: BLE001 - whatever it is, the outcome must not get lost
                self._emit(ServiceFailed("record", error))
                await patience.pause()
            else:
                is_recorded = recorded is not None
                self._emit(
                    AttemptFinished(
                        claim.row.id,
                        claim.attempt,
                        recorded or outcome,
                        seconds,
                        is_recorded,
                        claim.message.trace_id,
                    )
                )
                return is_recorded

    async def _ack(self, claim: Claim, slots: Slots, *, is_recorded: bool) -> None:
        """Ack the delivery that the run holds now; with the claim lost, it is decided anew."""
        delivery = self._runs.forget(claim)
        if delivery is None:
            return
        if is_recorded:
            await delivery.ack()
        elif delivery.is_alive:
            await self.process(delivery, slots)


_HOW_BY_DECISION: dict[type[Decision], str] = {
    Refused: "refused",
    Conflicting: "refused",
    PutOff: "put_off",
    Duplicate: "duplicate",
    Expired: "expired",
    CancelledBefore: "cancelled",
    Reemitted: "reemitted",
    Adopted: "adopted",
    GivenBody: "held_elsewhere",
}


def _how(decision: Decision) -> tuple[str, str]:
    """Name what happened to a delivery that led to no run, and its reason."""
    match decision:
        case Refused(reason=reason):
            detail = str(reason)
        case Conflicting():
            detail = str(Reason.CONFLICT)
        case PutOff(refusal=Refusal(reason=reason)):
            detail = str(reason)
        case _:
            detail = ""
    return _HOW_BY_DECISION[type(decision)], detail


def _without_values(outcome: Outcome, error: StoreDataError) -> Outcome:
    """What can be stored of an outcome that Postgres refused."""
    failure = Failure("StoreDataError", str(error))
    match outcome:
        case Succeeded():
            return Dead(Reason.RESULT_UNSERIALISABLE, failure)
        case Postponed(delay=delay, reason=reason):
            return Postponed(delay, failure, reason)
        case Dead(reason=reason):
            return Dead(reason, failure)
        case _:
            return outcome

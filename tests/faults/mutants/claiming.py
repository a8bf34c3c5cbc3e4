"""Mistakes about who may run and write: no inbox, no fence, no count, the wrong dead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from datetime import timedelta
from typing import Any

from broker_worker.outcome import Outcome, Succeeded
from broker_worker.ports import Beat
from broker_worker.services.heartbeat import DEAD_AFTER, Heartbeat
from broker_worker.step import (
    Claim,
    Step,
    step_of_decision,
    step_of_forgotten,
    step_of_outcome,
    step_of_rescue,
)
from broker_worker.task import TERMINAL, Arrival, Claimed, Conflicting, Decision, Task, TaskState, meet
from broker_worker.testing.memory import MemoryStore
from tests.faults.mutants.mutant import Mutant, function, method, together
from tests.faults.records import Effect
from tests.simulation.store import SimulatedTransaction, SimulatedWorkers, at_once

LEASE = timedelta(seconds=5)


def _run_what_has_ended(row: Task | None, arrival: Arrival, **named: Any) -> Decision:  # noqa: ANN401 - as the original
    if row is not None and row.state in TERMINAL and arrival.refusal is None and arrival.has_slot:
        return Claimed(row.attempt + 1, row.epoch + 1)
    return meet(row, arrival, **named)


def _take_conflicts_for_duplicates(row: Task | None, arrival: Arrival, **named: Any) -> Decision:  # noqa: ANN401 - as the original
    decision = meet(row, arrival, **named)
    if isinstance(decision, Conflicting) and row is not None:
        return meet(row, replace(arrival, digest=row.digest), **named)
    return decision


def _take_over_at_the_same_epoch(row: Task | None, arrival: Arrival, **named: Any) -> Decision:  # noqa: ANN401 - as the original
    decision = meet(row, arrival, **named)
    if isinstance(decision, Claimed) and decision.after_crash:
        return replace(decision, epoch=decision.epoch - 1)
    return decision


def _record_for_whoever_holds_it(record: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def mutated(self: MemoryStore, claim: Claim, outcome: Outcome) -> Outcome | None:
        row, mine = self._database.tasks[claim.row.id].task, self._worker
        self._worker = row.worker or mine
        try:
            recorded: Outcome | None = await record(self, replace(claim, row=row), outcome)
        finally:
            self._worker = mine
        return recorded

    return mutated


def _claim_without_a_count(decision: Decision, row: Task | None, *rest: Any, **named: Any) -> Step | None:  # noqa: ANN401 - as the original
    step = step_of_decision(decision, row, *rest, **named)
    if step is not None and isinstance(decision, Claimed):
        return replace(step, after=replace(step.after, attempt=decision.attempt - 1))
    return step


def _count_with_the_outcome(claim: Claim, outcome: Outcome, row: Task) -> Step:
    return step_of_outcome(claim, outcome, replace(row, attempt=row.attempt + 1))


def _charged(decide: Callable[..., Step]) -> Callable[..., Step]:
    """What a release gives back it takes again."""

    def mutated(*arguments: Any) -> Step:  # noqa: ANN401 - as the original
        step = decide(*arguments)
        is_release = step.before is not None and step.after.interruptions > step.before.interruptions
        if not is_release or step.before is None or step.after.state is not TaskState.QUEUED:
            return step
        return replace(step, after=replace(step.after, attempt=step.before.attempt))

    return mutated


def _bury_namesakes(register: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def mutated(self: SimulatedWorkers, *, name: str, release: str) -> None:
        await register(self, name=name, release=release)
        session = self._session
        host = name.partition("-")[0]
        namesakes = [each for each in await self.beat({}) if each.worker != session.process.worker]
        for each in namesakes if host else []:
            await self.declare_dead(each)

    return mutated


def _bury_by_the_clock(_: Callable[..., list[Beat]]) -> Callable[..., list[Beat]]:
    def mutated(self: Heartbeat, beats: Collection[Beat], now: float) -> list[Beat]:
        rows = self._workers._session.database.workers  # type: ignore[attr-defined]  # of the simulation
        return [each for each in beats if self._clock.now() - rows[each.worker].beat_at > DEAD_AFTER]

    return mutated


async def _rescue_by_a_lease(self: MemoryStore) -> int:
    latest = self._database.clock.now() - LEASE
    return self._each(
        lambda row: (
            row.task.state is TaskState.RUNNING and row.started_at is not None and row.started_at < latest
        ),
        step_of_rescue,
    )


async def _commit_in_two(self: SimulatedTransaction, outcome: Succeeded) -> None:
    def write() -> None:
        database, task = self._link.database, self._claim.row.id
        for amount in self.amounts:
            database.tell(
                Effect(
                    queue=task.queue,
                    name=task.name,
                    id=task.id,
                    attempt=self._claim.attempt,
                    xid=database.xid,
                    amount=amount,
                )
            )

    await self._link.call("commit", write)
    await self._link.call("record", lambda: at_once(self._link.store.record(self._claim, outcome)))


MUTANTS = (
    Mutant(
        "no inbox",
        "a task that has ended runs again when a duplicate of its message arrives",
        "I9",
        function(meet, _run_what_has_ended),
    ),
    Mutant(
        "conflicts are duplicates",
        "another message under a known identity is acked as if it were the known one",
        "I4",
        function(meet, _take_conflicts_for_duplicates),
    ),
    Mutant(
        "no fence",
        "an outcome is written whoever holds the task by now",
        "I10",
        method(MemoryStore, "record", _record_for_whoever_holds_it),
    ),
    Mutant(
        "take-over at the same epoch",
        "who takes a task from a dead worker does not raise its epoch",
        "I9",
        function(meet, _take_over_at_the_same_epoch),
    ),
    Mutant(
        "counted after the handler",
        "the attempt is counted with the outcome and not with the claim: a crash costs nothing",
        "I8",
        together(
            function(step_of_decision, _claim_without_a_count),
            function(step_of_outcome, _count_with_the_outcome),
        ),
    ),
    Mutant(
        "a release is charged",
        "the worker's own end costs a task one of its attempts",
        "I8",
        together(
            function(step_of_outcome, _charged(step_of_outcome)),
            function(step_of_forgotten, _charged(step_of_forgotten)),
        ),
    ),
    Mutant(
        "dead by its host's name",
        "a worker that begins declares dead those of the same host's name",
        "I10",
        method(SimulatedWorkers, "register", _bury_namesakes),
    ),
    Mutant(
        "dead by the clock",
        "a worker is declared dead when its last beat is old by another machine's clock",
        "I10",
        method(Heartbeat, "_stand_still", _bury_by_the_clock),
    ),
    Mutant(
        "rescue by a lease",
        "what has run for long is taken for abandoned, whether its worker is dead or not",
        "I10",
        method(MemoryStore, "rescue", lambda _: _rescue_by_a_lease),
    ),
    Mutant(
        "a transaction of its own for the outcome",
        "a handler's writes are committed first, and the end of its task after that",
        "I6",
        method(SimulatedTransaction, "commit", lambda _: _commit_in_two),
    ),
)

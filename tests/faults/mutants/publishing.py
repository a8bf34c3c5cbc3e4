"""Mistakes about the outbox: forgotten before it was sent, or sent as something else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from broker_worker.errors import PublishError
from broker_worker.message import Scalar, publisher_headers
from broker_worker.outgoing import Owed
from broker_worker.services.relay import Relay
from broker_worker.step import Step, step_of_outcome, step_of_overdue, step_of_rescue
from broker_worker.task import Task
from broker_worker.testing.memory import MemoryStore
from tests.faults.mutants.mutant import Mutant, function, method, together


def _forget_at_once(promptly: Callable[..., None]) -> Callable[..., None]:
    def mutated(self: Relay, owed: Sequence[Owed]) -> None:
        promptly(self, owed)
        self._confirmed += [each.id for each in owed]

    return mutated


def _delete_what_is_taken(take: Callable[..., Awaitable[list[Owed]]]) -> Callable[..., Awaitable[list[Owed]]]:
    async def mutated(self: MemoryStore, limit: int) -> list[Owed]:
        owed = await take(self, limit)
        await self.delete([each.id for each in owed])
        return owed

    return mutated


def _ignore_returns(note: Callable[..., None]) -> Callable[..., None]:
    def mutated(self: Relay, owed: Owed, error: PublishError | None) -> None:
        note(self, owed, None if "returned" in str(error) else error)

    return mutated


def keep_all_headers(headers: Mapping[str, object]) -> dict[str, Scalar]:
    own = publisher_headers(headers)
    return own | {
        name: value for name, value in headers.items() if name.startswith("x-") and isinstance(value, Scalar)
    }


def _without_letter(decide: Callable[..., Step]) -> Callable[..., Step]:
    def mutated(*arguments: Any) -> Step:  # noqa: ANN401 - as the original
        step = decide(*arguments)
        return replace(step, letter=None) if step.letter is not None else step

    return mutated


def _without_copy(decide: Callable[..., Step]) -> Callable[..., Step]:
    def mutated(*arguments: Any) -> Step:  # noqa: ANN401 - as the original
        return replace(decide(*arguments), copy=None)

    return mutated


def _same_epoch(row: Task, message: Any) -> Step:  # noqa: ANN401 - as the original
    step = step_of_overdue(row, message)
    return replace(step, after=replace(step.after, epoch=row.epoch))


MUTANTS = (
    Mutant(
        "publish without the confirm",
        "an outbox row is deleted as soon as its message is handed to the publisher",
        "I5",
        method(Relay, "promptly", _forget_at_once),
    ),
    Mutant(
        "marked before it is published",
        "the relay deletes what it takes, and publishes after that",
        "I5",
        method(MemoryStore, "take", _delete_what_is_taken),
    ),
    Mutant(
        "returns are ignored",
        "a message that the broker returned counts as confirmed",
        "I5",
        method(Relay, "_note", _ignore_returns),
    ),
    Mutant(
        "headers of the broker are copied",
        "a copy carries on what the broker wrote into the headers, by which it drops cycles",
        "I16",
        function(publisher_headers, keep_all_headers),
    ),
    Mutant(
        "dead without a letter",
        "a task ends as dead, and no dead letter is written with it",
        "I7",
        together(
            function(step_of_outcome, _without_letter(step_of_outcome)),
            function(step_of_rescue, _without_letter(step_of_rescue)),
        ),
    ),
    Mutant(
        "rescued without a copy",
        "what ran under a dead worker waits again, and nobody owes its message",
        "I7",
        function(step_of_rescue, _without_copy(step_of_rescue)),
    ),
    Mutant(
        "sent again without an epoch",
        "an overdue task is sent again under the epoch that its lost copy had: both may run",
        "I7",
        function(step_of_overdue, _same_epoch),
    ),
)

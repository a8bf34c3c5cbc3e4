"""What the core asks of the world. Adapters satisfy these by shape and import nothing of the core."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from broker_worker.context import BaseContext
from broker_worker.dead_letter import DeadLetter
from broker_worker.errors import PublishError
from broker_worker.handler import Handler, Limits
from broker_worker.message import Properties
from broker_worker.outcome import Outcome, Succeeded
from broker_worker.outgoing import Outgoing, Owed
from broker_worker.step import Claim, Met
from broker_worker.task import Arrival, Holder, Poisoning

CANCEL_NOTICE = "cancel:"  # before a task's key: what the store notifies, and a worker hears


class Delivery(Protocol):
    """One arrival of a message: the only thing that can be acked."""

    @property
    def queue(self) -> str:
        """The queue's name as publishers know it, without prefix."""

    @property
    def properties(self) -> Properties: ...

    @property
    def body(self) -> bytes: ...

    @property
    def redelivered(self) -> bool: ...

    @property
    def poisoning(self) -> Poisoning | None:
        """Set where the broker gave this message up, and it came by way of the dead letters."""

    @property
    def is_alive(self) -> bool:
        """Whether the channel that it came on is still open, so that an ack can reach the broker."""

    async def ack(self) -> None:
        """Let the broker forget the message.

        An ack for a channel that is gone is dropped: the broker delivers again. Never raises.
        """


class Publisher(Protocol):
    """Confirmed publishing."""

    async def publish(self, outgoing: Outgoing) -> None:
        """Return once the broker has confirmed `outgoing` and did not return it.

        Raises:
            PublishError: it was returned, refused, or not confirmed in time (30 s); it may be sent twice.
        """

    def begin(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        """Publish at once where only the confirm is to be waited for, and answer whether that is so.

        Then `done` is called once, later, with nothing or with what `publish` would raise; else nothing is
        sent, and `publish` is the way.
        """


class Clock(Protocol):
    """Time, so that tests can move it."""

    def now(self) -> datetime:
        """The time of day, UTC."""

    def monotonic(self) -> float:
        """Seconds of a clock that never jumps."""

    async def sleep(self, seconds: float) -> None: ...


class Memory(Protocol):
    """What this process knows of its own runs; asked and told by the store around each commit."""

    def recall(self, key: int, epoch: int) -> Holder:
        """Say what is known of the run of task `key` at `epoch`: HERE, HERE_ADRIFT or HERE_FORGOTTEN."""

    def remember(self, claim: Claim, delivery: Delivery) -> None:
        """Know the run of a claim from the moment that its commit is known."""

    def adopt(self, key: int, epoch: int, delivery: Delivery) -> bool:
        """Let `delivery` take the place of the one that a run lost; `False` if that run is over."""


class TaskStore(Protocol):
    """The inbox: every answer is given after its commit."""

    async def settled(self) -> None:
        """Return once nothing is on its way, and memory knows every claim that was made."""

    async def arrive(self, arrival: Arrival, delivery: Delivery) -> Met:
        """Decide what a delivery means and commit what follows, a claim among it. Repeatable.

        Raises:
            StoreUnavailableError: whether it was written is not known.
            StoreDataError: a value of this message can't be stored.
        """

    async def record(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        """Commit an outcome and all it owes; nothing if the claim is lost. Repeatable.

        Answers with what the row shows now: `outcome`, or the success that an earlier
        try, or the handler's own transaction, has committed.

        Raises:
            StoreUnavailableError: whether it was written is not known.
            StoreDataError: a value of this outcome can't be stored.
        """

    async def is_completed(self, claim: Claim) -> bool:
        """Look whether the handler has committed its task's end in a transaction of its own.

        Raises:
            StoreUnavailableError: it can't be seen now.
        """

    async def bury(self, letter: DeadLetter, *, is_published: bool = False) -> None:
        """Keep a message that is no task as a dead letter; `is_published`: it came as one.

        Raises:
            StoreUnavailableError: whether it was written is not known.
        """


class Checkpoints(Protocol):
    """Where an attempt leaves what the next one begins with."""

    async def save(self, claim: Claim, state: str) -> None:
        """Commit `state`, JSON, in place of the one before.

        Raises:
            ClaimLostError: the attempt is not ours any more; nothing was written.
            StoreUnavailableError: whether it was written is not known.
            StoreDataError: Postgres refuses it.
        """


@dataclass(frozen=True, slots=True)
class Report:
    """How far one attempt is: `fraction` from 0 to 1."""

    key: int
    epoch: int
    fraction: float
    note: str


class Progress(Protocol):
    """How far attempts are: written a little later, the newest of each only."""

    def report(self, claim: Claim, fraction: float, note: str) -> None:
        """Take note; from any thread, without waiting."""


class HandlerTransaction(Protocol):
    """The database transaction that a transactional handler works in."""

    @property
    def session(self) -> object:
        """An `AsyncSession` that refuses `commit` and `rollback`."""

    async def check(self) -> None:
        """See that the claim holds.

        Raises:
            ClaimLostError: the attempt is not ours any more.
        """

    async def commit(self, outcome: Succeeded) -> None:
        """Write the outcome and what was sent as the last statements, fenced by the claim, and commit.

        Raises:
            ClaimLostError: the attempt is not ours any more; all was rolled back.
            CommitUnknownError: the reply to the commit was lost.
            Exception: whatever the database refused of the handler's own writes; all was rolled back.
        """


class Transactions(Protocol):
    """Opens them, on connections of their own."""

    def open(self, claim: Claim, *, limit: timedelta) -> AbstractAsyncContextManager[HandlerTransaction]:
        """Begin one that may last `limit`; left without `commit`, it is rolled back.

        Raises:
            StoreUnavailableError: at the entry, no connection could be had.
        """


class ChildProcess(Protocol):
    """A process that runs one attempt."""

    async def run(
        self,
        handler: Handler,
        context: BaseContext,
        *,
        limits: Limits,
        jitter: float,
        time_left: timedelta | None,
    ) -> Outcome:
        """Run an attempt; cancelled, the process is killed.

        Raises:
            ChildCrashedError: the process ended before the attempt did.
        """


class ChildProcesses(Protocol):
    """Processes for attempts, made when they are needed and used again."""

    def child(self, *, memory_limit: int | None) -> AbstractAsyncContextManager[ChildProcess]:
        """Take one that is idle and holds little of `memory_limit` bytes, or a new one.

        Raises:
            ChildCrashedError: at the entry, it can't start.
        """


class Outbox(Protocol):
    """What is owed to the world, until the broker confirmed it."""

    async def take(self, limit: int) -> list[Owed]:
        """Take at most `limit` rows that are due, of a dead worker, or left lying, for two minutes."""

    async def delete(self, ids: Sequence[int]) -> None:
        """Forget what the broker has confirmed."""

    async def put_back(self, ids: Sequence[int]) -> None:
        """Leave rows that could not be published to any relay, later and later."""

    async def return_unsent(self, ids: Sequence[int]) -> None:
        """Leave rows that nobody tried to send to any relay, a second later: nothing is wrong with them."""


@dataclass(frozen=True, slots=True)
class Beat:
    """How often a worker that is not dead had beaten when it was looked at."""

    worker: UUID
    beat: int


class Workers(Protocol):
    """The rows of workers."""

    async def beat(self, idle: Mapping[str, float]) -> list[Beat]:
        """Beat once, and look at all workers that are not dead; `idle` is seconds of free prefetch by queue.

        Raises:
            DeclaredDeadError: another worker found this one dead.
        """

    async def declare_dead(self, beat: Beat) -> bool:
        """Declare a worker dead if it has not beaten since."""


class Rescues(Protocol):
    """Tasks that nobody holds; each answers how many it moved, a bounded number a turn."""

    async def rescue(self) -> int:
        """Re-emit what runs under dead workers and has its body in the database."""

    async def reemit_overdue(self) -> int:
        """Send waiting tasks again whose copy should have come long ago."""

    async def release_forgotten(self, known: Collection[int]) -> int:
        """Release what runs under our own id, has its body in the database, and is not in `known`."""

    async def bury_lost(self) -> int:
        """End what runs under workers dead for hours without a body."""

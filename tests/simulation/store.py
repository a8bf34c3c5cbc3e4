"""Postgres: the memory store behind a network that loses replies, and a server that is away at times.

The adapters have the constructors of those in `broker_worker/store`, so that `App` builds them; what they
get as their database is a `Session`. A statement is executed at one moment, whole or not at all; what the
process is told comes later, or never. As there, memory and the relay hear of a commit with its reply.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from broker_worker.dead_letter import DeadLetter
from broker_worker.errors import (
    ClaimLostError,
    CommitUnknownError,
    StoreBusyError,
    StoreDataError,
    StoreUnavailableError,
)
from broker_worker.outcome import Outcome, Succeeded
from broker_worker.outgoing import Owed
from broker_worker.ports import Beat, Delivery, Memory, Report
from broker_worker.step import Claim, Met
from broker_worker.store.group_commit import GroupCommit
from broker_worker.task import Arrival, Holder
from broker_worker.testing.memory import MemoryStore
from tests.faults.records import Effect
from tests.simulation.database import SimulatedDatabase

if TYPE_CHECKING:
    from tests.simulation.process import SimulatedProcess

T = TypeVar("T")
PATIENCE = 5.0  # seconds until a statement without an answer is given up
LOOKS_AGAIN = 0.05  # seconds until a row that another transaction holds is looked at again
UNSTORABLE = "unstorable"  # a header: the database refuses a value of this message


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to its end what never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("it waits")


class Shim:
    """What the memory store tells the process, kept until the reply arrives."""

    def __init__(self) -> None:
        self.memory: Memory | None = None
        self.relay: Callable[[list[Owed]], None] = lambda _: None
        self.effects: list[Callable[[], object]] = []
        self.adoption: tuple[int, int, Delivery] | None = None

    def recall(self, key: int, epoch: int) -> Holder:
        assert self.memory is not None
        return self.memory.recall(key, epoch)

    def remember(self, claim: Claim, delivery: Delivery) -> None:
        assert self.memory is not None
        self.effects.append(partial(self.memory.remember, claim, delivery))

    def adopt(self, key: int, epoch: int, delivery: Delivery) -> bool:
        self.adoption = (key, epoch, delivery)
        return True

    def owe(self, owed: list[Owed]) -> None:
        if owed:
            self.effects.append(partial(self.relay, owed))

    def taken(self) -> list[Callable[[], object]]:
        effects, self.effects = self.effects, []
        return effects


@dataclass(eq=False, slots=True)
class Statement(Generic[T]):
    """One transaction on its way."""

    name: str
    work: Callable[[], T]
    told: Callable[[T], Any]
    answer: asyncio.Future[Any]
    is_given_up: bool = False
    is_lost: bool = False  # its reply will not come
    error: Exception | None = None
    effects: list[Callable[[], object]] = field(default_factory=list)


class Session:
    """One process's way to the database."""

    def __init__(self, process: SimulatedProcess, database: SimulatedDatabase) -> None:
        self.process = process
        self.world = process.world
        self.database = database
        self.schema = "simulated"
        self.shim = Shim()
        self.under_way = 0
        self.store = MemoryStore(
            database,
            worker=process.worker,
            memory=self.shim,
            owed=self.shim.owe,
            grace=process.settings.unknown_task_grace,
        )

    async def call(self, name: str, work: Callable[[], T], told: Callable[[T], T] | None = None) -> T:
        """Execute `work` in one transaction, and say what it answers.

        Raises:
            StoreUnavailableError: it was not executed, or nobody knows.
        """
        loop = self.world.loop
        if self.process.is_dead:
            await loop.create_future()
        self.process.pass_by(f"before {name}")
        statement = Statement(name, work, told or (lambda value: value), loop.create_future())
        self._send(statement)
        answer: T = await statement.answer
        return answer

    async def close(self) -> None:
        """Close the pool, which holds nothing here."""

    def _send(self, statement: Statement[Any]) -> None:
        world, faults = self.world, self.process.faults
        wait = world.latency()
        outage = faults.outage
        if outage == "refuses" or faults.strikes("store_refused"):
            return self._answer_later(wait, statement, StoreUnavailableError("connection refused"))
        if faults.strikes("store_transient"):
            return self._answer_later(wait, statement, StoreBusyError("40001: could not serialize access"))
        if outage == "hangs" or faults.strikes("store_timeout"):
            return self._answer_later(PATIENCE, statement, StoreUnavailableError("no answer"))
        if faults.strikes("store_slow"):
            wait += world.random.random() * 3.0
        if faults.strikes("executed_late"):
            statement.is_given_up = True
            self._answer_later(PATIENCE, statement, StoreUnavailableError("no answer"))
            wait += PATIENCE + world.random.random() * 15.0
        # a statement that reached the server is executed whatever becomes of the process; a transaction of
        # several waits for the process's next word
        is_single = world.random.random() < 0.5
        context = world.outside if is_single else self.process.context
        world.loop.call_later(wait, self._execute, statement, context=context)
        return None

    def _execute(self, statement: Statement[Any]) -> None:
        world = self.world
        is_unheard = statement.is_given_up or self.process.is_dead or self.process.is_paused
        if statement.answer.cancelled() and world.random.random() < 0.5:
            return  # whoever waited for it is gone, and it had not been sent
        if self.process.faults.outage:
            self._answer_later(world.latency(), statement, StoreUnavailableError("the server closed"))
            return
        self.database.begin(actor=str(self.process.worker), is_unheard=is_unheard)
        result: Any = None
        try:
            result = statement.work()
        except (StoreDataError, ClaimLostError) as error:
            statement.error = error
        except Exception as error:  # noqa: BLE001 - told to who asked
            statement.error = error
        statement.effects = self.shim.taken()
        if statement.is_given_up or self.process.is_dead:
            return
        self.process.pass_by(f"executed {statement.name}")
        if self.process.faults.strikes("reply_lost"):
            after = PATIENCE if world.chance(0.3) else world.latency()
            self._answer_later(after, statement, StoreUnavailableError("the reply was lost"))
        else:
            reply = partial(self._reply, statement, result)
            world.loop.call_later(world.latency(), reply, context=self.process.context)

    def _answer_later(self, seconds: float, statement: Statement[Any], error: Exception) -> None:
        def answer() -> None:
            if not statement.answer.done():
                statement.answer.set_exception(error)

        self.world.loop.call_later(seconds, answer, context=self.process.context)

    def _reply(self, statement: Statement[Any], result: object) -> None:
        for effect in statement.effects:
            effect()
        if statement.error is None:
            result = statement.told(result)
        if statement.answer.done():
            return
        if statement.error is not None:
            statement.answer.set_exception(statement.error)
        else:
            statement.answer.set_result(result)
            self.process.pass_by(f"told {statement.name}")


# --- the inbox ---------------------------------------------------------------------


class Locked:
    """Another transaction holds the row: come again."""


@dataclass(frozen=True, slots=True)
class Coming:
    arrival: Arrival
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Ending:
    claim: Claim
    outcome: Outcome


class SimulatedTaskStore:
    """As `store.tasks.TaskStore`: the same group commits, on memory."""

    def __init__(
        self,
        session: Session,
        *,
        worker: UUID,
        memory: Memory,
        owed: Callable[[list[Owed]], None],
        grace: timedelta,
        keeps_payloads: bool,
    ) -> None:
        self._session = session
        session.shim.memory, session.shim.relay = memory, owed
        self._memory = memory
        self._arrivals = GroupCommit(self._commit_arrivals, key=lambda item: item.arrival.message.task)
        self._successes = GroupCommit(self._commit_endings, key=lambda item: item.claim.key)
        self._others = GroupCommit(self._commit_endings, key=lambda item: item.claim.key)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as writers:
            writers.create_task(self._arrivals.run())
            writers.create_task(self._successes.run())
            writers.create_task(self._others.run())

    async def settled(self) -> None:
        for commits in (self._arrivals, self._successes, self._others):
            await commits.settled()

    async def arrive(self, arrival: Arrival, delivery: Delivery) -> Met:
        while True:
            met = await self._arrivals.write(Coming(arrival, delivery))
            if met is not None:
                return met
            await asyncio.sleep(LOOKS_AGAIN)

    async def record(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        if isinstance(outcome, Succeeded) and outcome.is_recorded:
            return outcome
        commits = self._successes if isinstance(outcome, Succeeded) else self._others
        while True:
            recorded = await commits.write(Ending(claim, outcome))
            if not isinstance(recorded, Locked):
                return recorded
            await asyncio.sleep(LOOKS_AGAIN)

    async def is_completed(self, claim: Claim) -> bool:
        store = self._session.store
        return await self._session.call("is_completed", lambda: at_once(store.is_completed(claim)))

    async def bury(self, letter: DeadLetter, *, is_published: bool = False) -> None:
        store = self._session.store
        await self._session.call("bury", lambda: at_once(store.bury(letter, is_published=is_published)))

    async def _commit_arrivals(self, batch: Sequence[Coming]) -> list[Met | None]:
        decided = await self._session.call("arrive", partial(self._decide, batch), self._adopt)
        return [met for met, _ in decided]

    def _decide(self, batch: Sequence[Coming]) -> list[tuple[Met | None, tuple[int, int, Delivery] | None]]:
        session = self._session
        for coming in batch:
            if UNSTORABLE in coming.arrival.message.headers:
                raise StoreDataError("22P05: unsupported Unicode escape sequence")
        decided: list[tuple[Met | None, tuple[int, int, Delivery] | None]] = []
        for coming in batch:
            is_known = coming.arrival.message.task in session.database.tasks
            # who is not there to decide can have sent nothing but the statement that claims what is new
            if session.process.faults.strikes("row_locked") or (session.database.is_unheard and is_known):
                decided.append((None, None))
                continue
            met = session.store._decide(coming.arrival, coming.delivery)
            adoption, session.shim.adoption = session.shim.adoption, None
            if met is not None:
                session.world.done[type(met.decision).__name__.lower()] += 1
            decided.append((met, adoption))
        return decided

    def _adopt(
        self, decided: list[tuple[Met | None, tuple[int, int, Delivery] | None]]
    ) -> list[tuple[Met | None, tuple[int, int, Delivery] | None]]:
        """Tell memory; a run that ended while it was decided that a delivery joins it is decided again."""
        return [
            (met if adoption is None or self._memory.adopt(*adoption) else None, None)
            for met, adoption in decided
        ]

    async def _commit_endings(self, batch: Sequence[Ending]) -> list[Outcome | Locked | None]:
        return await self._session.call("record", partial(self._record, batch))

    def _record(self, batch: Sequence[Ending]) -> list[Outcome | Locked | None]:
        session = self._session
        recorded: list[Outcome | Locked | None] = []
        for ending in batch:
            if session.process.faults.strikes("row_locked"):
                recorded.append(Locked())
                continue
            outcome = at_once(session.store.record(ending.claim, ending.outcome))
            session.world.done["recorded" if outcome is not None else "fenced"] += 1
            recorded.append(outcome)
        return recorded


class SimulatedTransactions:
    """As `store.transactions.Transactions`."""

    def __init__(
        self,
        session: Session,
        *,
        worker: UUID,
        owed: Callable[[list[Owed]], None],
        keeps_payloads: bool,
    ) -> None:
        self._session = session

    @contextlib.asynccontextmanager
    async def open(self, claim: Claim, *, limit: timedelta) -> AsyncIterator[SimulatedTransaction]:
        await self._session.call("begin", lambda: None)
        yield SimulatedTransaction(self._session, claim)


class SimulatedTransaction:
    """A handler's: its writes are there with its outcome, or not at all."""

    def __init__(self, session: Session, claim: Claim) -> None:
        self.session = self  # what the handler gets
        self.amounts: list[int] = []
        self._link = session
        self._claim = claim

    def add(self, amount: int) -> None:
        """Write a row, as a handler does."""
        self.amounts.append(amount)

    async def check(self) -> None:
        store = self._link.store
        if not await self._link.call(
            "check", lambda: store._running(self._claim.key, self._claim.epoch) is not None
        ):
            raise ClaimLostError("the attempt is not this worker's any more")

    async def commit(self, outcome: Succeeded) -> None:
        try:
            await self._link.call("commit", lambda: self._commit(outcome))
        except StoreUnavailableError as error:
            raise CommitUnknownError(str(error)) from error

    def _commit(self, outcome: Succeeded) -> None:
        store, claim, database = self._link.store, self._claim, self._link.database
        row = store._running(claim.key, claim.epoch)
        if row is None:
            self._link.world.done["transaction_fenced"] += 1
            raise ClaimLostError("the attempt is not this worker's any more")
        at_once(store.record(claim, outcome))
        for amount in self.amounts:
            task = claim.row.id
            database.tell(
                Effect(
                    queue=task.queue,
                    name=task.name,
                    id=task.id,
                    attempt=claim.attempt,
                    xid=database.xid,
                    amount=amount,
                )
            )


# --- the rest ------------------------------------------------------------------------


class SimulatedOutbox:
    def __init__(self, session: Session, *, worker: UUID) -> None:
        self._session = session

    async def take(self, limit: int) -> list[Owed]:
        store = self._session.store
        return await self._session.call("take", lambda: at_once(store.take(limit)))

    async def delete(self, ids: Sequence[int]) -> None:
        store = self._session.store
        await self._session.call("delete", lambda: at_once(store.delete(ids)))

    async def put_back(self, ids: Sequence[int]) -> None:
        store = self._session.store
        await self._session.call("put_back", lambda: at_once(store.put_back(ids)))


class SimulatedWorkers:
    def __init__(self, session: Session, *, worker: UUID) -> None:
        self._session = session

    async def register(self, *, name: str, release: str) -> None:
        await self._session.call(
            "register", lambda: self._session.database.register(self._session.process.worker, name)
        )

    async def beat(self, idle: Mapping[str, float]) -> list[Beat]:
        store = self._session.store
        return await self._session.call("beat", lambda: at_once(store.beat(idle)))

    async def declare_dead(self, beat: Beat) -> bool:
        store, database = self._session.store, self._session.database

        def declare() -> bool:
            is_done = at_once(store.declare_dead(beat))
            if is_done:
                database.note_end(beat.worker, "dead")
            return is_done

        return await self._session.call("declare_dead", declare)

    async def leave(self) -> None:
        store, database = self._session.store, self._session.database

        def leave() -> None:
            if not database.is_dead(self._session.process.worker):
                at_once(store.leave())
                database.note_end(self._session.process.worker, "left")

        await self._session.call("leave", leave)


class SimulatedRescues:
    def __init__(self, session: Session, *, worker: UUID, owed: Callable[[list[Owed]], None]) -> None:
        self._session = session

    async def rescue(self) -> int:
        return await self._session.call("rescue", lambda: at_once(self._session.store.rescue()))

    async def reemit_overdue(self) -> int:
        return await self._session.call("reemit", lambda: at_once(self._session.store.reemit_overdue()))

    async def release_forgotten(self, known: Collection[int]) -> int:
        known = list(known)
        return await self._session.call(
            "release_forgotten", lambda: at_once(self._session.store.release_forgotten(known))
        )

    async def bury_lost(self) -> int:
        return await self._session.call("bury_lost", lambda: at_once(self._session.store.bury_lost()))


class SimulatedLetters:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def knows(self, letter: UUID, body: bytes) -> bool:
        def look() -> bool:
            found = self._session.database.letters.get(letter)
            return found is not None and found.body == body

        return await self._session.call("knows", look)


class SimulatedCheckpoints:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def save(self, claim: Claim, state: str) -> None:
        await self._session.call("save", lambda: at_once(self._session.store.save(claim, state)))


class SimulatedProgress:
    def __init__(self, session: Session, *, worker: UUID) -> None:
        self._session = session

    async def write(self, reports: Sequence[Report]) -> None:
        await self._session.call("write", lambda: at_once(self._session.store.write(reports)))


class SimulatedCancels:
    def __init__(self, session: Session, *, worker: UUID) -> None:
        self._session = session

    async def requested(self, claims: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        claims = list(claims)
        if not claims:
            return set()
        return await self._session.call("requested", lambda: at_once(self._session.store.requested(claims)))

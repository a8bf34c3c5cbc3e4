"""Transactional handlers on the test's own database: the outcome in memory, the handler's writes in there."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from broker_worker.errors import BrokerWorkerError
from broker_worker.outcome import Succeeded
from broker_worker.step import Claim
from broker_worker.testing.errors import HarnessError
from broker_worker.testing.keeping import HarnessStore

SessionFactory = Callable[[], object]
"""Makes a session with `commit`, `rollback` and `close`, async or not: an `async_sessionmaker` for one."""

NO_FACTORY = (
    "the handler of {name!r} takes an AsyncSession: give the harness a session_factory, an "
    "async_sessionmaker of your test database (in pytest by the fixture broker_worker_options)"
)


class HarnessTransactions:
    """Satisfies `ports.Transactions`."""

    def __init__(self, store: HarnessStore, factory: SessionFactory | None) -> None:
        self._store = store
        self._factory = factory

    @asynccontextmanager
    async def open(self, claim: Claim, *, limit: timedelta) -> AsyncIterator[HarnessTransaction]:  # noqa: ARG002 - the port's
        """Begin one; left without `commit`, it is rolled back."""
        if self._factory is None:
            raise HarnessError(NO_FACTORY.format(name=claim.row.id.name))
        transaction = HarnessTransaction(self._store, claim, self._factory())
        try:
            yield transaction
        finally:
            await transaction.end()


class HarnessTransaction:
    """Satisfies `ports.HandlerTransaction`."""

    def __init__(self, store: HarnessStore, claim: Claim, session: object) -> None:
        self.session = session
        self._store = store
        self._claim = claim
        self._end = {name: getattr(session, name) for name in ("commit", "rollback", "close")}
        self._is_committed = False
        for name in self._end:
            setattr(session, name, self._refuse)

    async def check(self) -> None:
        """See that the claim holds."""
        self._store.check(self._claim)

    async def commit(self, outcome: Succeeded) -> None:
        """Commit what the handler wrote, and its outcome right after."""
        self._store.check(self._claim)
        await self._do("commit")
        self._is_committed = True
        await self._store.record(self._claim, outcome)

    async def end(self) -> None:
        """Roll back what was not committed, and close the session."""
        if not self._is_committed:
            await self._do("rollback")
        await self._do("close")

    async def _do(self, name: str) -> None:
        done = self._end[name]()
        if inspect.isawaitable(done):
            await done

    @staticmethod
    def _refuse() -> None:
        raise BrokerWorkerError(
            "the end of a handler's session is the worker's: it commits when the handler returns; "
            "raise to roll back; use begin_nested() for a savepoint"
        )

"""How many dead letters a second are resolved, and which."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from broker_worker.cli.dead_letters import given, resolve_all
from broker_worker.store.audit import Verdict


class VirtualClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


async def test_replays_keep_to_the_rate_that_was_asked_for() -> None:
    clock = VirtualClock()
    resolved: list[float] = []

    async def resolve(id_: UUID) -> Verdict:
        resolved.append(clock.time)
        return Verdict(str(id_), is_done=True, detail="")

    ids = tuple(uuid4() for _ in range(5))
    verdicts = [verdict async for verdict in resolve_all(given(ids), resolve, clock=clock, rate=2)]

    assert resolved == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [verdict.id for verdict in verdicts] == [str(id_) for id_ in ids]


async def test_an_id_that_is_given_twice_is_resolved_once() -> None:
    id_ = uuid4()

    assert [each async for each in given((id_, id_))] == [id_]

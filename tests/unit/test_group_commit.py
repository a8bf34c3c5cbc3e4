from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from broker_worker.errors import StoreDataError, StoreUnavailableError
from broker_worker.store.group_commit import GroupCommit


class Commits:
    """Where batches go: each waits until the test lets it through."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()

    async def commit(self, batch: Sequence[str]) -> list[str]:
        self.batches.append(list(batch))
        self.begun.set()
        await self.gate.wait()
        for item in batch:
            if item.startswith("bad"):
                raise StoreDataError(item)
            if item.startswith("away"):
                raise StoreUnavailableError(item)
        return [item.upper() for item in batch]


@pytest.fixture
def commits() -> Commits:
    return Commits()


@asynccontextmanager
async def running(commits: Commits, *, max_batch: int = 200) -> AsyncIterator[GroupCommit[str, str]]:
    group = GroupCommit(commits.commit, key=lambda item: item.partition("/")[0], max_batch=max_batch)
    async with asyncio.TaskGroup() as tasks:
        committer = tasks.create_task(group.run())
        yield group
        committer.cancel()


async def written(group: GroupCommit[str, str], item: str) -> str:
    return await group.write(item)


async def test_what_arrives_during_a_commit_shares_the_next_one(commits: Commits) -> None:
    async with running(commits) as group, asyncio.TaskGroup() as writers:
        first = writers.create_task(written(group, "a"))
        await commits.begun.wait()
        rest = [writers.create_task(written(group, item)) for item in "bcd"]
        await asyncio.sleep(0)
        commits.gate.set()

    assert commits.batches == [["a"], ["b", "c", "d"]]
    assert [task.result() for task in (first, *rest)] == ["A", "B", "C", "D"]


async def test_what_nobody_waits_for_any_more_is_not_written(commits: Commits) -> None:
    async with running(commits) as group:
        first = asyncio.create_task(written(group, "a"))
        await commits.begun.wait()
        given_up = asyncio.create_task(written(group, "b"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        commits.gate.set()
        await first
        await group.settled()

    assert commits.batches == [["a"]]


async def test_it_is_settled_only_when_the_batch_on_its_way_has_arrived(commits: Commits) -> None:
    async with running(commits) as group:
        given_up = asyncio.create_task(written(group, "a"))
        await commits.begun.wait()
        given_up.cancel()
        settled = asyncio.create_task(group.settled())
        await asyncio.sleep(0)
        assert not settled.done()

        commits.gate.set()

        await settled


async def test_a_batch_is_bounded_and_keeps_the_order(commits: Commits) -> None:
    commits.gate.set()
    async with running(commits, max_batch=2) as group:
        await asyncio.gather(*(group.write(item) for item in "abcde"))

    assert commits.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_batch_holds_a_key_once(commits: Commits) -> None:
    commits.gate.set()
    async with running(commits) as group:
        answers = await asyncio.gather(*(group.write(item) for item in ("a/1", "a/2", "b/1", "a/3")))

    assert commits.batches == [["a/1", "b/1"], ["a/2"], ["a/3"]]
    assert answers == ["A/1", "A/2", "B/1", "A/3"]


async def test_one_bad_item_does_not_fail_its_neighbours(commits: Commits) -> None:
    commits.gate.set()
    async with running(commits) as group:
        answers = await asyncio.gather(
            *(group.write(item) for item in ("a", "bad", "c")), return_exceptions=True
        )

    assert commits.batches == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
    assert (answers[0], answers[2]) == ("A", "C")
    assert isinstance(answers[1], StoreDataError)


async def test_when_the_database_is_away_everyone_in_the_batch_is_told(commits: Commits) -> None:
    commits.gate.set()
    async with running(commits) as group:
        answers = await asyncio.gather(*(group.write(item) for item in ("a", "away")), return_exceptions=True)
        after = await group.write("later")

    assert [type(answer) for answer in answers] == [StoreUnavailableError, StoreUnavailableError]
    assert after == "LATER"


async def test_the_database_leaving_in_the_middle_of_one_by_one_fails_only_those_it_did_not_write(
    commits: Commits,
) -> None:
    commits.gate.set()
    async with running(commits) as group:
        answers = await asyncio.gather(
            *(group.write(item) for item in ("bad", "away", "c")), return_exceptions=True
        )

    assert isinstance(answers[0], StoreDataError)
    assert isinstance(answers[1], StoreUnavailableError)
    assert answers[2] == "C"


async def test_a_writer_that_is_cancelled_disturbs_nobody(commits: Commits) -> None:
    async with running(commits) as group, asyncio.TaskGroup() as writers:
        cancelled, kept = (writers.create_task(written(group, item)) for item in "ab")
        await commits.begun.wait()
        cancelled.cancel()
        await asyncio.sleep(0)
        commits.gate.set()

    assert cancelled.cancelled()
    assert kept.result() == "B"


async def test_at_its_end_whoever_still_waits_is_cancelled_and_not_left_hanging(commits: Commits) -> None:
    async with asyncio.TaskGroup() as tasks:
        group = GroupCommit(commits.commit, key=lambda item: item)
        committer = tasks.create_task(group.run())
        in_commit = tasks.create_task(written(group, "a"))
        await commits.begun.wait()
        waiting = tasks.create_task(written(group, "b"))
        await asyncio.sleep(0)

        committer.cancel()

    assert in_commit.cancelled()
    assert waiting.cancelled()
    assert commits.batches == [["a"]]

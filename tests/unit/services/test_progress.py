"""What attempts report, until it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker_worker.errors import StoreUnavailableError
from broker_worker.message import Message, TaskId
from broker_worker.ports import Report
from broker_worker.services.progress import MAX_NOTE_BYTES, ProgressWriter
from broker_worker.step import Claim
from broker_worker.task import Task, TaskState

MESSAGE = Message(TaskId("email", "email.send", "m-1"), b"{}")


class FakeReports:
    """Keeps what was written, a list for each turn; `meanwhile` happens during a write."""

    def __init__(self) -> None:
        self.turns: list[list[Report]] = []
        self.is_up = True
        self.meanwhile: Callable[[], None] = lambda: None

    async def write(self, reports: Sequence[Report]) -> None:
        self.meanwhile()
        if not self.is_up:
            raise StoreUnavailableError("down")
        self.turns.append(list(reports))


def a_claim(key: int = 1, epoch: int = 1) -> Claim:
    row = Task(key, MESSAGE.task, TaskState.RUNNING, 1, 3, epoch, worker=None, digest=b"")
    return Claim(row, MESSAGE)


async def test_a_turn_writes_the_newest_of_each_attempt_at_once() -> None:
    reports = FakeReports()
    writer = ProgressWriter(reports)
    for fraction in (0.25, 0.5):
        writer.report(a_claim(1), fraction, "one")
        writer.report(a_claim(2, epoch=7), fraction, "two")

    await writer.run_once()

    assert reports.turns == [[Report(1, 1, 0.5, "one"), Report(2, 7, 0.5, "two")]]


async def test_without_news_nothing_is_written() -> None:
    reports = FakeReports()
    writer = ProgressWriter(reports)
    writer.report(a_claim(), 0.5, "")

    await writer.run_once()
    await writer.run_once()

    assert len(reports.turns) == 1


async def test_what_could_not_be_written_is_kept_for_the_next_turn_unless_there_is_newer() -> None:
    reports = FakeReports()
    writer = ProgressWriter(reports)
    writer.report(a_claim(1), 0.25, "old")
    writer.report(a_claim(2), 0.5, "kept")
    reports.is_up = False
    reports.meanwhile = lambda: writer.report(a_claim(1), 0.75, "new")
    with pytest.raises(StoreUnavailableError):
        await writer.run_once()
    reports.is_up, reports.meanwhile = True, lambda: None

    await writer.run_once()

    assert reports.turns == [[Report(1, 1, 0.75, "new"), Report(2, 1, 0.5, "kept")]]


async def test_a_note_is_made_storable_and_short() -> None:
    reports = FakeReports()
    writer = ProgressWriter(reports)
    writer.report(a_claim(1), 0.5, "a\0b\ud800")
    writer.report(a_claim(2), 0.5, "é" * 1000)

    await writer.run_once()

    [[first, second]] = reports.turns
    assert first.note == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert MAX_NOTE_BYTES - 3 <= len(second.note.encode()) <= MAX_NOTE_BYTES == 200


async def test_no_last_report_of_a_thread_is_lost() -> None:
    reports = FakeReports()
    writer = ProgressWriter(reports)

    def work(key: int) -> None:
        for number in range(1001):
            writer.report(a_claim(key), number / 1000, "")

    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(work, key) for key in range(4)]
        while not all(each.done() for each in working):
            await writer.run_once()
    await writer.run_once()

    last = {report.key: report.fraction for turn in reports.turns for report in turn}
    assert last == dict.fromkeys(range(4), 1.0)

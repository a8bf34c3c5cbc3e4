"""The work itself, its count, and the share of it that a contestant gets."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import payload, tally
from benchmarks.contestant import Contestant
from benchmarks.scale import FULL
from benchmarks.throughput import messages_of

ANYONE = Contestant(name="anyone", title="anyone", runner="none")


@pytest.mark.parametrize("number", [0, 19_999, 999_999])
def test_every_body_is_json_of_sixty_bytes(number: int) -> None:
    body = payload.body(number)

    assert len(body) == 60
    assert json.loads(body) == payload.payload(number)


def test_a_body_is_as_large_as_it_is_asked_to_be() -> None:
    assert len(payload.body(7, 1024 * 1024)) == 1024 * 1024


def test_a_tally_counts_the_calls_of_all_threads_and_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TALLY", str(tmp_path / "tally"))
    monkeypatch.setattr(tally, "_file", [])  # this process has not opened it yet
    began = time.monotonic()

    def count(_: int) -> None:
        tally.count()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(100)))
    process = multiprocessing.get_context("spawn").Process(target=tally.count)
    process.start()
    process.join()

    stamps = tally.stamps(tmp_path / "tally")
    assert tally.counted(tmp_path / "tally") == 101
    assert all(began <= stamp <= time.monotonic() for stamp in stamps)


def test_nothing_is_counted_before_the_first_call(tmp_path: Path) -> None:
    assert tally.counted(tmp_path / "tally") == 0


@pytest.mark.parametrize(("share", "messages"), [(1.0, 20_000), (0.1, 2_000), (0.00001, 50)])
def test_a_slow_contestant_gets_a_share_of_the_messages_in_whole_batches_of_acks(
    share: float, messages: int
) -> None:
    assert messages_of(replace(ANYONE, share=share), FULL) == messages

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from broker_worker.failure import FIRST_FRAMES, LAST_FRAMES, MAX_TRACEBACK_BYTES
from broker_worker.telemetry.watchdog import Watchdog, stack_of
from tests.unit.telemetry.conftest import Lines


class World:
    """A loop in one thread, its watchdog in another, and the time between its looks."""

    def __init__(self) -> None:
        self.now = 100.0
        self.spent = 7.0
        self.watchdog = Watchdog(monotonic=lambda: self.now, process_time=lambda: self.spent)
        self._thread = ThreadPoolExecutor(1)

    async def turn(self) -> None:
        """Let the loop turn, and be seen to."""
        self.look(0.25)
        await asyncio.sleep(0)
        self.look(0.25)

    def look(self, after: float, *, spending: float = 0.0) -> None:
        """Look from another thread, as ever, while this one does nothing but wait."""
        self.now += after
        self.spent += spending
        self._thread.submit(self.watchdog.look).result()


@pytest.fixture
def world(lines: Lines) -> World:
    lines.configure()
    return World()


async def watched(world: World, handler: Callable[[], None]) -> None:
    """Run `handler` in a task of a loop that turned until then, and let it turn afterwards."""
    world.watchdog.watch(asyncio.get_running_loop())
    await world.turn()

    async def attempt() -> None:
        handler()

    await asyncio.create_task(attempt(), name="email.send m-1")
    world.look(0.25)
    await asyncio.sleep(0)


def holds_up(world: World, seconds: float) -> None:
    world.look(0)  # asks
    for _ in range(round(seconds / 0.25)):
        world.look(0.25)


async def test_a_loop_that_turns_is_no_line(world: World, lines: Lines) -> None:
    world.watchdog.watch(asyncio.get_running_loop())

    for _ in range(20):
        await world.turn()

    assert lines.raw == []
    assert world.watchdog.standing == timedelta(0)


async def test_a_loop_that_stands_for_less_than_a_second_is_no_line(world: World, lines: Lines) -> None:
    await watched(world, lambda: holds_up(world, 0.75))

    assert lines.raw == []


async def test_a_blocked_loop_is_one_line_with_the_task_and_one_when_it_turns(
    world: World, lines: Lines
) -> None:
    await watched(world, lambda: holds_up(world, 5))
    await world.turn()

    blocked, turning = lines.all
    assert blocked["level"] == "warning"
    assert blocked["message"] == "event loop blocked"
    assert blocked["running"] == "email.send m-1"
    assert blocked["stood_s"] == pytest.approx(1)
    assert turning["level"] == "info"
    assert turning["message"] == "event loop turns again"
    assert turning["stood_s"] == pytest.approx(5, abs=0.5)


async def test_each_blockage_has_lines_of_its_own(world: World, lines: Lines) -> None:
    for _ in range(2):
        await watched(world, lambda: holds_up(world, 2))
        await world.turn()

    assert [line["message"] for line in lines.all] == ["event loop blocked", "event loop turns again"] * 2
    assert world.watchdog.standing == timedelta(0)


async def test_the_stack_is_the_handlers_part_without_values(world: World, lines: Lines) -> None:
    def handler() -> None:
        local = "local-" + "canary"
        holds_up(world, len(local) / 4)

    await watched(world, handler)

    blocked = lines.all[0]
    first, *_ = blocked["stack"].splitlines()
    assert first.endswith("in attempt")
    assert "in handler" in blocked["stack"]
    assert "    holds_up(world, len(local) / 4)" in blocked["stack"].splitlines()
    assert "asyncio/runners.py" not in lines.text
    assert "local-canary" not in lines.text


async def test_a_console_shows_the_stack_on_lines_below(world: World, lines: Lines) -> None:
    lines.configure(log_format="console")
    world = World()

    await watched(world, lambda: holds_up(world, 1))

    assert "event loop blocked" in lines.raw[0]
    assert any(line.endswith("in holds_up") for line in lines.raw[1:])
    assert all(line.startswith("    ") for line in lines.raw[1:-1])
    assert "event loop turns again" in lines.raw[-1]


async def test_a_process_that_was_suspended_was_not_blocked(world: World, lines: Lines) -> None:
    seen = []

    def is_suspended() -> None:
        holds_up(world, 0.25)
        world.look(3600)
        seen.append(world.watchdog.standing)

    await watched(world, is_suspended)

    assert lines.raw == []
    assert timedelta(0) < seen[0] < timedelta(seconds=1)


async def test_code_that_lets_no_thread_run_is_told_from_a_suspension_by_the_time_it_spends(
    world: World, lines: Lines
) -> None:
    def holds_the_lock() -> None:
        holds_up(world, 0)
        world.look(20, spending=19)

    await watched(world, holds_the_lock)

    assert lines.all[0]["running"] == "email.send m-1"
    assert lines.all[0]["stood_s"] == pytest.approx(19)


async def test_a_callback_that_blocks_has_no_task_but_a_stack(world: World, lines: Lines) -> None:
    loop = asyncio.get_running_loop()
    world.watchdog.watch(loop)
    await world.turn()
    done = asyncio.Event()

    def callback() -> None:
        holds_up(world, 1)
        done.set()

    loop.call_soon(callback)
    await done.wait()

    assert lines.only["running"] is None
    assert "in callback" in lines.only["stack"]


async def test_a_name_with_a_secret_in_it_is_masked(lines: Lines) -> None:
    lines.configure(secrets=("m-1-canary",))
    world = World()
    world.watchdog.watch(asyncio.get_running_loop())
    await world.turn()

    async def attempt() -> None:
        holds_up(world, 1)

    await asyncio.create_task(attempt(), name="email.send m-1-canary")

    assert lines.only["running"] == "email.send ***"


def test_a_stack_without_a_loop_is_shown_from_its_beginning() -> None:
    assert stack_of(sys._getframe()).splitlines()[-2].endswith("without_a_loop_is_shown_from_its_beginning")


def test_of_a_deep_stack_both_ends_are_shown() -> None:
    def down(levels: int) -> str:
        return further_down(levels - 1)

    def further_down(levels: int) -> str:
        return down(levels - 1) if levels > 0 else innermost()

    def innermost() -> str:
        return stack_of(sys._getframe())

    stack = down(500)

    assert stack.splitlines()[-2].endswith("in innermost")
    assert stack.count("File ") == FIRST_FRAMES + LAST_FRAMES
    assert len(stack.encode()) <= MAX_TRACEBACK_BYTES


async def test_the_thread_looks_until_it_is_stopped(lines: Lines) -> None:
    lines.configure()
    watchdog = Watchdog()
    watchdog.start()
    released = threading.Event()
    said: list[timedelta] = []

    def release() -> None:
        while watchdog.standing < timedelta(seconds=1):
            pass
        said.append(watchdog.standing)
        released.set()

    thread = threading.Thread(target=release)
    thread.start()
    released.wait()  # blocks the loop
    watchdog.stop()
    thread.join()

    assert said[0] >= timedelta(seconds=1)
    assert "broker-worker-watchdog" not in {each.name for each in threading.enumerate()}


def test_one_that_was_never_started_can_be_stopped() -> None:
    Watchdog().stop()

"""The places at which tests make a process fail: each is there, and none is anywhere else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from broker_worker import failpoints
from broker_worker.errors import ConfigurationError
from broker_worker.failpoints import PLACES, Action, Failpoint, FailpointError, Place, begin, can, end

PACKAGE = Path(failpoints.__file__).parent


class Part:
    """Something with a method of each kind."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def work(self, what: str) -> str:
        self.done.append(what)
        return what

    def call(self, what: str) -> str:
        self.done.append(what)
        return what


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a function of a fixture
    """Arm one place of `Part`, which is let go with the test."""

    def arm(place: Place, what: str) -> Part:
        monkeypatch.setitem(PLACES, "here", (place,))
        monkeypatch.setattr(Part, place.method, place.function)  # so that it is set back
        failpoints.arm(f"here:{what}")
        return Part()

    return arm


@pytest.mark.parametrize("name", PLACES)
def test_a_place_is_the_begin_or_end_of_a_method_that_there_is(name: str) -> None:
    for place in PLACES[name]:
        assert place.method in vars(place.owner)
        assert callable(place.function)


async def test_an_action_happens_at_the_nth_pass_and_once(armed) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    part = armed(begin(Part, "work"), "raise:2")

    await part.work("first")
    with pytest.raises(FailpointError):
        await part.work("second")
    await part.work("third")

    assert part.done == ["first", "third"]


async def test_the_end_of_a_method_is_after_what_it_did(armed) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    part = armed(end(Part, "work"), "raise")

    with pytest.raises(FailpointError):
        await part.work("done")

    assert part.done == ["done"]


async def test_only_the_calls_that_count_pass_a_place(armed) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    part = armed(begin(Part, "call", lambda arguments, _: arguments[0] == "that"), "raise")

    assert part.call("this") == "this"
    with pytest.raises(FailpointError):
        part.call("that")


async def test_a_cancelled_task_ends_at_the_place(armed) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    part = armed(end(Part, "work"), "cancel")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(part.work("done"))

    assert task.cancelled()
    assert part.done == ["done"]


async def test_a_task_that_hangs_keeps_no_other_from_going_on(armed) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    part = armed(begin(Part, "work"), "hang")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await part.work("never")
    await part.work("the next")

    assert part.done == ["the next"]


@pytest.mark.parametrize(
    "text", ["claimed", "claimed:explode", "nowhere:kill9", "claimed:kill9:soon", "ack_written:raise"]
)
def test_what_is_no_failpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Failpoint.parse(text)


def test_in_a_callback_no_task_can_be_cancelled_and_nothing_raises() -> None:
    assert {action for action in Action if not can(action, "copy_confirmed")} == {
        Action.RAISE,
        Action.CANCEL,
        Action.HANG,
    }
    assert all(can(action, "claimed") for action in Action)


def test_a_process_in_which_nothing_is_named_does_not_even_import_it() -> None:
    program = "import sys, broker_worker.app; print('broker_worker.failpoints' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


def test_the_ordinary_code_has_no_call_sites() -> None:
    named = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if "failpoints" in file.read_text(encoding="utf-8")
    }

    assert named == {"failpoints.py", "app.py", "cli/session.py"}

"""Attempts in child processes, with real ones: what gets through, and what ends with whom."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker_worker.context import AnyHandler, Completion, Context
from broker_worker.errors import (
    BrokerWorkerError,
    ChildCrashedError,
    ClaimLostError,
    StoreUnavailableError,
)
from broker_worker.failure import describe
from broker_worker.framing import read_frame, write_frame
from broker_worker.handler import Limits
from broker_worker.loading import load_registries
from broker_worker.message import Message, TaskId
from broker_worker.outcome import Dead, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.retry import RetryPolicy
from broker_worker.sending import PayloadError, Sent, SentEvent, SentTask
from broker_worker.worker.conversation import Begin, Start, read_word, write_word
from broker_worker.worker.processes import ProcessPool
from tests.support import process_handlers
from tests.support.daemon import ROOT, until

pytestmark = pytest.mark.timeout(180)

MODULE = "tests.support.process_handlers"
HANDLERS = f"{MODULE}:registry"
MIB = 2**20
LIMITS = Limits(RetryPolicy(3, timedelta(seconds=10), timedelta(minutes=1), jitter=0), timedelta(seconds=30))
DEADLINE = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
REGISTRY = load_registries([MODULE])


@dataclass
class Hands:
    """Keeps what an attempt asks for."""

    error: Exception | None = None
    is_cancelled: bool = False
    progress: list[tuple[float, str]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def report_progress(self, fraction: float, note: str) -> None:
        self.progress.append((fraction, note))

    async def save(self, state: str) -> None:
        if self.error is not None:
            raise self.error
        self.saved.append(state)

    def save_from_thread(self, state: str) -> None:
        raise NotImplementedError

    def send(self, sent: Sent) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(sent)

    def name_of(self, task: AnyHandler | str) -> str:
        raise NotImplementedError

    def complete_json(self, result: str | None) -> Completion:
        if self.error is not None:
            raise self.error
        return Completion("UPDATE tasks SET result = %s", (result, 7, None))


def context(name: str, payload: object = None, **facts: Any) -> Context:  # noqa: ANN401 - of a context
    body = b"" if payload is None else json.dumps(payload).encode()
    message = Message(TaskId("work", name, "17"), body, headers=facts.pop("headers", {}))
    given = {"attempt": 1, "max_attempts": 3, "may_be_repeat": False, "deadline": DEADLINE, **facts}
    return Context(message=message, **given)


@pytest.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    pool = ProcessPool(modules=[HANDLERS], limit=4, max_result_bytes=4 * MIB, log_format="json")
    yield pool
    await pool.close()


async def run(pool: ProcessPool, name: str, payload: object = None, **facts: Any) -> Outcome:  # noqa: ANN401 - likewise
    handler = REGISTRY.lookup(name)
    assert handler is not None
    async with pool.child(memory_limit=handler.memory_limit) as child:
        return await child.run(
            handler,
            context(name, payload, **facts),
            limits=handler.limits(LIMITS),
            jitter=0.5,
            time_left=None,
        )


async def result(pool: ProcessPool, name: str, payload: object = None, **facts: Any) -> Any:  # noqa: ANN401 - likewise
    outcome = await run(pool, name, payload, **facts)
    assert isinstance(outcome, Succeeded), outcome
    return None if outcome.result is None else json.loads(outcome.result)


async def eventually(what: str, probe: Callable[[], Any]) -> Any:  # noqa: ANN401 - the probe's
    return await asyncio.to_thread(until, what, probe)


def is_running(pid: int) -> bool:
    """Whether a process is more than an entry that nobody has reaped."""
    try:
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return threads > 1 or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def written(path: Path) -> Callable[[], str]:
    return lambda: path.read_text() if path.exists() else ""


# --- what gets through -------------------------------------------------------------------


async def test_json_goes_in_and_comes_out(pool: ProcessPool) -> None:
    found = await result(pool, "add", {"a": 1, "b": 2})

    assert found["total"] == 3
    assert found["pid"] != os.getpid()


async def test_an_async_handler_runs_on_a_loop_of_the_child(pool: ProcessPool) -> None:
    assert await result(pool, "add_async", {"a": 1, "b": 2}) == 3


async def test_a_plain_handler_may_have_a_loop_of_its_own(pool: ProcessPool) -> None:
    assert await result(pool, "own_loop") == "inside"


async def test_a_second_attempt_finds_the_same_child(pool: ProcessPool) -> None:
    first = await result(pool, "add", {"a": 1, "b": 2})
    await run(pool, "decide", {"how": "fail"})

    second = await result(pool, "add", {"a": 1, "b": 2})

    assert second["pid"] == first["pid"]


async def test_a_body_and_a_result_of_a_mebibyte_pass(pool: ProcessPool) -> None:
    text = "x" * MIB

    assert await result(pool, "measure", {"text": text}) == text


async def test_a_result_that_is_too_large_is_refused(pool: ProcessPool) -> None:
    outcome = await run(pool, "measure", {"text": "x" * 5 * MIB})

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.RESULT_TOO_LARGE


async def test_a_result_that_is_no_json_is_refused(pool: ProcessPool) -> None:
    outcome = await run(pool, "unserialisable")

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.RESULT_UNSERIALISABLE


async def test_the_payload_is_validated_in_the_child(pool: ProcessPool) -> None:
    outcome = await run(pool, "add", {"a": 1, "b": "secret"})

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.INVALID_PAYLOAD
    assert outcome.failure.message == "b: int_parsing"


async def test_an_error_keeps_what_is_worth_keeping(pool: ProcessPool) -> None:
    with pytest.raises(ValueError, match="unheard of") as caught:
        process_handlers.decide("this")
    here = describe(caught.value.with_traceback(caught.tb.tb_next))

    outcome = await run(pool, "decide", {"how": "this"})

    assert isinstance(outcome, Postponed)
    assert outcome.delay == timedelta(seconds=10)
    assert outcome.failure.message == "this is unheard of"
    assert outcome.failure.error_type == "ValueError"
    assert outcome.failure.fingerprint == here.fingerprint
    assert "in fail\n    raise error\nValueError: this is unheard of\na note" in str(
        outcome.failure.traceback
    )
    assert "child.py" not in str(outcome.failure.traceback)


async def test_an_async_error_shows_its_own_frames_only(pool: ProcessPool) -> None:
    outcome = await run(pool, "fail_async")

    assert isinstance(outcome, Postponed)
    assert str(outcome.failure.traceback).count("  File ") == 1


@pytest.mark.parametrize(
    ("how", "delay"), [("retry", timedelta(seconds=7)), ("exit", timedelta(seconds=10)), ("give_up", None)]
)
async def test_a_handler_decides_what_follows(pool: ProcessPool, how: str, delay: timedelta | None) -> None:
    outcome = await run(pool, "decide", {"how": how})

    assert getattr(outcome, "delay", None) == delay
    assert isinstance(outcome, Postponed) or outcome.reason is Reason.GAVE_UP  # type: ignore[union-attr]


async def test_policies_by_type_of_error_count_in_the_child(pool: ProcessPool) -> None:
    outcome = await run(pool, "final")

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.GAVE_UP


async def test_the_last_attempt_is_the_last_in_the_child(pool: ProcessPool) -> None:
    outcome = await run(pool, "decide", {"how": "fail"}, attempt=3)

    assert isinstance(outcome, Dead)
    assert outcome.reason is Reason.ATTEMPTS_EXHAUSTED


async def test_what_a_handler_prints_is_printed(
    pool: ProcessPool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)

    outcome = await run(pool, "print", {"text": "hello from a child"})

    assert outcome == Succeeded()
    assert capfd.readouterr() == ("hello from a child\n", "hello from a child")


async def test_a_line_of_log_says_its_task(pool: ProcessPool, capfd: pytest.CaptureFixture[str]) -> None:
    await run(pool, "log")

    line = json.loads(capfd.readouterr().out)
    assert (line["message"], line["task_id"]) == ("a line from a child", "17")


# --- the context -------------------------------------------------------------------------


async def test_the_facts_of_the_attempt_are_known(pool: ProcessPool) -> None:
    headers = {"raw": b"\xff", "at": DEADLINE, "ratio": float("inf")}
    await run(pool, "add_async", {"a": 1, "b": 2})

    found = await result(
        pool, "facts", attempt=2, may_be_repeat=True, saved_json='{"page":3}', headers=headers
    )

    assert found == {
        "id": "17",
        "attempt": 2,
        "max_attempts": 3,
        "may_be_repeat": True,
        "deadline": DEADLINE.isoformat(),
        "saved": {"page": 3},
        "headers": {name: repr(value) for name, value in headers.items()},
        "current": "facts",
    }


async def test_what_a_handler_asks_for_reaches_the_hands(pool: ProcessPool) -> None:
    hands = Hands()

    outcome = await run(pool, "reach_out", hands=hands, headers={"tenant-id": "acme"})

    task, event = hands.sent
    assert outcome == Succeeded('"reached"', (task, event))
    assert hands.progress == [(0.5, "half")]
    assert hands.saved == ['{"page":3}']
    assert isinstance(task, SentTask)
    assert task.message.task == TaskId("work", "add", "next")
    assert (task.message.body, task.delay) == (b'{"a":1,"b":2}', timedelta(seconds=5))
    assert task.message.headers == {"tenant-id": "acme"}
    assert event == SentEvent("events", "a.b", b'{"is":"over"}')


async def test_a_plain_handler_reaches_the_same_hands(pool: ProcessPool) -> None:
    hands = Hands()

    assert await result(pool, "reach_out_plainly", hands=hands) == "next"
    assert hands.progress == [(1.0, "")]
    assert hands.saved == ["[1,2]"]
    assert [sent.message.task.queue for sent in hands.sent if isinstance(sent, SentTask)] == ["other"]


async def test_the_answer_to_a_checkpoint_that_was_left_off_hurts_nobody(
    pool: ProcessPool, tmp_path: Path
) -> None:
    left_off = tmp_path / "left off"

    @dataclass
    class SlowHands(Hands):
        async def save(self, state: str) -> None:
            await eventually("the handler has left off", left_off.exists)
            await super().save(state)

    hands = SlowHands()

    assert await result(pool, "save_impatiently", {"path": str(left_off)}, hands=hands) == "saved"
    assert hands.saved == ['"first"', '"second"']


async def test_of_progress_in_a_loop_the_newest_counts(pool: ProcessPool) -> None:
    hands = Hands()

    await run(pool, "report_often", hands=hands)

    assert hands.progress[-1] == (1.0, "")
    assert len(hands.progress) < 1000


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), PayloadError("too large")])
async def test_an_error_of_the_hands_is_raised_in_the_handler(
    pool: ProcessPool, error: BrokerWorkerError
) -> None:
    outcome = await run(pool, "reach_out", hands=Hands(error))

    assert isinstance(outcome, Postponed)
    assert (outcome.failure.error_type, outcome.failure.message) == (type(error).__name__, str(error))


async def test_a_lost_claim_is_no_failure(pool: ProcessPool) -> None:
    outcome = await run(pool, "reach_out_plainly", hands=Hands(ClaimLostError("taken over")))

    assert outcome == Released()


async def test_hands_that_break_end_the_child(pool: ProcessPool) -> None:
    before = await result(pool, "add", {"a": 1, "b": 2})

    with pytest.raises(ZeroDivisionError):
        await run(pool, "reach_out", hands=Hands(ZeroDivisionError()))

    assert not is_running(before["pid"])


async def test_a_completion_comes_from_the_worker(pool: ProcessPool) -> None:
    found = await result(pool, "complete", hands=Hands())

    assert found == ["UPDATE tasks SET result = %s", '{"total":1,"pid":2}', 7, None]


async def test_a_thread_that_outlives_its_attempt_does_not_speak_for_the_next(pool: ProcessPool) -> None:
    hands = Hands()
    await run(pool, "outlive", hands=Hands())

    assert await result(pool, "refusal", hands=hands) == "the attempt is over"
    assert hands.progress == []


# --- what a child has of its parent ------------------------------------------------------


async def test_a_child_has_no_setting_and_no_descriptor_of_its_parent(
    pool: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_WORKER_DATABASE_URL", "postgresql://user:password@host/app")
    monkeypatch.setenv("BROKER_WORKER_AMQP_URL_FILE", "/run/secrets/amqp")
    monkeypatch.setenv("broker_worker_amqp_url", "amqp://user:password@host")  # settings take any case
    monkeypatch.setenv("OF_THE_HANDLERS", "kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        found = await result(pool, "surroundings")

    assert [name for name in found["environment"] if name.upper().startswith("BROKER_WORKER_")] == []
    assert found["environment"]["OF_THE_HANDLERS"] == "kept"
    assert [each for each in found["descriptors"] if each.startswith("socket:")] == []
    assert [each.partition(":")[0] for each in found["descriptors"] if "pipe:" in each][-2:] == ["pipe"] * 2


async def test_a_child_imports_no_driver_and_no_command_line(pool: ProcessPool) -> None:
    found = await result(pool, "surroundings")

    drivers = {"aio_pika", "aiormq", "sqlalchemy", "asyncpg", "alembic", "typer", "prometheus_client"}
    assert drivers & set(found["modules"]) == set()


async def test_the_kernel_takes_the_child_before_the_worker(pool: ProcessPool) -> None:
    found = await result(pool, "surroundings")

    assert found["oom_score"] == "1000"


async def test_signals_to_a_group_do_not_end_a_child(pool: ProcessPool) -> None:
    assert await result(pool, "be_signalled") == "still here"


async def test_programs_that_a_handler_starts_can_be_terminated(pool: ProcessPool) -> None:
    assert await result(pool, "terminate_offspring") == -signal.SIGTERM


async def test_resources_are_opened_in_the_child_and_closed_with_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOSED", str(tmp_path / "closed"))
    pool = ProcessPool(modules=[MODULE], limit=1, max_result_bytes=MIB)

    found = await result(pool, "of_class")
    await pool.close()

    assert found == "an address"
    assert (tmp_path / "closed").read_text() == "closed"


async def test_a_child_that_can_not_start_says_why() -> None:
    pool = ProcessPool(modules=["tests.support.absent"], limit=1, max_result_bytes=MIB)

    with pytest.raises(ChildCrashedError, match=r"^could not start: tests\.support\.absent: the module"):
        async with pool.child():
            raise AssertionError

    await pool.close()


async def test_a_child_that_ends_while_it_starts_says_how(tmp_path: Path) -> None:
    (tmp_path / "ends_at_once.py").write_text("import os; os._exit(4)")
    sys.path.append(str(tmp_path))
    pool = ProcessPool(modules=["ends_at_once"], limit=1, max_result_bytes=MIB)

    with pytest.raises(ChildCrashedError, match=r"^could not start: exit status 4$"):
        async with pool.child():
            raise AssertionError

    sys.path.remove(str(tmp_path))
    await pool.close()


# --- what ends with whom -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("crash", {"how": "SIGKILL"}, "killed by SIGKILL"),
        ("crash", {"how": "segfault"}, "killed by SIGSEGV"),
        ("crash", {"how": "exit"}, "exit status 1"),
        ("crash", {"how": "close"}, "it closed its pipe to the worker"),
        ("crash", {"how": "scribble"}, "something that is no frame was written into the pipe"),
        ("crash", {"how": "fork_and_die"}, "exit status 7"),
        ("hoard", {"mebibytes": 1000}, "out of memory (memory limit 256MiB)"),
        ("hoard_in_group", None, "out of memory (memory limit 256MiB)"),
        ("hoard_result", None, "killed by SIGABRT (memory limit 256MiB)"),
    ],
)
async def test_a_crash_ends_its_own_attempt_and_nothing_else(
    pool: ProcessPool, tmp_path: Path, name: str, payload: object, *, message: str
) -> None:
    go, begun = tmp_path / "go", tmp_path / "begun"
    async with asyncio.TaskGroup() as group:
        sibling = group.create_task(result(pool, "echo_when", {"begun": str(begun), "path": str(go)}))
        await eventually("the sibling runs", written(begun))

        with pytest.raises(ChildCrashedError) as caught:
            await run(pool, name, payload)

        go.write_text("untouched")

    # with its pipes closed a child soon ends, too: either may be seen first
    either = {message, "exit status 1"} if payload == {"how": "close"} else {message}
    assert str(caught.value) in either
    assert sibling.result() == "untouched"
    assert (await result(pool, "add", {"a": 1, "b": 2}))["total"] == 3


async def test_a_crash_shows_where_it_happened(pool: ProcessPool) -> None:
    with pytest.raises(ChildCrashedError) as caught:
        await run(pool, "crash", {"how": "segfault"})

    traceback = str(describe(caught.value).traceback)
    assert "process_handlers.py" in traceback
    assert "in crash" in traceback


async def test_memory_within_the_limit_is_free_again_for_the_next(pool: ProcessPool) -> None:
    first = await result(pool, "need", {"mebibytes": 64})
    await run(pool, "add", {"a": 1, "b": 2})

    assert await result(pool, "need", {"mebibytes": 64}) == first
    assert await result(pool, "keep", {"mebibytes": 512}) == first


async def test_nobody_is_charged_for_memory_that_others_keep(pool: ProcessPool) -> None:
    other = await result(pool, "keep", {"mebibytes": 200})

    assert await result(pool, "need", {"mebibytes": 64}) != other


async def test_a_child_that_ended_while_idle_is_charged_to_nobody(pool: ProcessPool) -> None:
    before = await result(pool, "add", {"a": 1, "b": 2})
    os.kill(before["pid"], signal.SIGKILL)
    until("the child is gone", lambda: not is_running(before["pid"]))  # and the event loop knows nothing

    after = await result(pool, "add", {"a": 1, "b": 2})

    assert after["pid"] != before["pid"]


async def test_no_more_children_are_kept_than_allowed(tmp_path: Path) -> None:
    pool = ProcessPool(modules=[HANDLERS], limit=1, max_result_bytes=MIB)
    async with pool.child() as first, pool.child() as second:
        assert first is not second

    assert [first.is_alive, second.is_alive] == [False, True]
    await pool.close()


async def test_a_cancelled_attempt_ends_with_its_process_and_what_that_started(
    pool: ProcessPool, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        attempt = group.create_task(run(pool, "wait_with_offspring", {"path": str(tmp_path / "pids")}))
        pids = json.loads(await eventually("the handler runs", written(tmp_path / "pids")))

        attempt.cancel()

        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert not is_running(pids[0])
        await eventually("its offspring is gone", lambda: not is_running(pids[1]))


async def test_a_closed_pool_leaves_no_process(tmp_path: Path) -> None:
    pool = ProcessPool(modules=[HANDLERS], limit=2, max_result_bytes=MIB)
    idle = await result(pool, "add", {"a": 1, "b": 2})
    async with asyncio.TaskGroup() as group:
        group.create_task(run(pool, "keep", {"mebibytes": 0}))
        attempt = group.create_task(_crashed(run(pool, "wait", {"path": str(tmp_path / "pid")})))
        busy = int(await eventually("the handler runs", written(tmp_path / "pid")))

        await pool.close()

    assert attempt.result() == "killed by SIGKILL"
    assert [pid for pid in (idle["pid"], busy) if is_running(pid)] == []


async def _crashed(attempt: Any) -> str:  # noqa: ANN401 - a coroutine
    with pytest.raises(ChildCrashedError) as caught:
        await attempt
    return str(caught.value)


PARENT = """
import asyncio, sys
from datetime import timedelta
from tests.integration.test_processes import HANDLERS, MIB, run
from broker_worker.worker.processes import ProcessPool

async def main():
    pool = ProcessPool(modules=[HANDLERS], limit=1, max_result_bytes=MIB)
    await run(pool, "wait_in_c", {"path": sys.argv[1]})

asyncio.run(main())
"""


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "pid")], cwd=ROOT) as parent:
        try:
            child = int(until("the handler runs", written(tmp_path / "pid")))
        finally:
            parent.kill()

    until("the child is gone", lambda: not is_running(child))


def test_a_running_child_ends_when_its_orders_end(tmp_path: Path) -> None:
    their_orders, our_orders = os.pipe()
    our_reports, their_reports = os.pipe()
    numbers = [str(each) for each in (os.getpid(), their_orders, their_reports, their_reports)]
    with subprocess.Popen(
        [sys.executable, "-m", "broker_worker.child", *numbers],
        cwd=ROOT,
        pass_fds=(their_orders, their_reports),
    ) as child:
        os.close(their_orders)
        os.close(their_reports)
        write_frame(our_orders, write_word(Start((HANDLERS,), tuple(sys.path), MIB, "info", "json")))
        read_word(read_frame(our_reports) or b"")
        handler = REGISTRY.lookup("wait")
        assert handler is not None
        begin = Begin.of(
            handler,
            context("wait", {"path": str(tmp_path / "pid")}),
            limits=LIMITS,
            jitter=0.5,
            time_left=None,
        )
        write_frame(our_orders, write_word(begin))
        until("the handler runs", written(tmp_path / "pid"))

        os.close(our_orders)

        assert child.wait(30) == 1
    os.close(our_reports)

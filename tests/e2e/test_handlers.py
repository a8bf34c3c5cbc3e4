"""Handlers that crash, hang, or write into the database: what their tasks and their neighbours see of it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Service, message
from tests.support.commit_cutter import ANSWER, QUERY, commit_cutter
from tests.support.daemon import until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def authored(service: Service) -> Service:
    """A service with a table in which effects are counted, not forbidden to come twice."""
    service.settings = {"HANDLERS": "tests.support.author_handlers", "QUEUES": "default:32"}
    service.rows("CREATE TABLE public.effects (task_id text NOT NULL)")
    return service


def effects(service: Service) -> list[str]:
    return [row["task_id"] for row in service.rows("SELECT task_id FROM public.effects")]


# --- child processes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [("killed", "SIGKILL"), ("segfault", "SIGSEGV"), ("exit", "status 1"), ("memory", "memory")],
)
def test_a_child_that_dies_takes_its_attempt_and_nothing_else(authored: Service, how: str, says: str) -> None:
    authored.start()
    authored.publish(*(message("child.healthy", f"healthy-{i}") for i in range(2)))
    until("the healthy ones run", lambda: len(authored.runs()) == 2)

    authored.publish(message("child.crash", "crasher", {"how": how}))
    until("the crasher is dead", lambda: authored.states().get("dead") == 1)
    authored.gate.touch()

    authored.until_states(succeeded=2, dead=1)
    authored.until_rest()
    crasher = authored.task("crasher")
    assert crasher["reason"] == "crashed"
    assert says in crasher["error_message"]
    assert set(authored.runs().values()) == {1}
    authored.publish(message("child.healthy", "after"))
    authored.until_states(succeeded=3, dead=1)


def test_a_child_dies_with_its_daemon(authored: Service) -> None:
    worker = authored.start()
    authored.publish(message("child.healthy", "t-1"))
    until("it runs", lambda: authored.runs()["t-1"] == 1)
    (child,) = children(worker.process.pid)

    worker.signal(signal.SIGKILL)

    until("the child is gone", lambda: not child.exists())


def test_of_eight_children_the_one_that_is_killed_is_charged_alone(authored: Service) -> None:
    worker = authored.start()
    authored.publish(*(message("child.healthy", f"t-{i}") for i in range(8)))
    until("all run", lambda: len(authored.runs()) == 8)

    os.kill(int(children(worker.process.pid)[0].name), signal.SIGKILL)
    until("it is charged", lambda: authored.rows("SELECT 1 FROM attempts"))
    authored.gate.touch()

    authored.until_states(succeeded=8)
    assert sorted(row["attempt"] for row in authored.rows("SELECT attempt FROM tasks")) == [1] * 7 + [2]
    (attempt,) = authored.rows("SELECT outcome FROM attempts")
    assert attempt["outcome"] == "crashed"
    worker.wait_ready()


def children(pid: int) -> list[Path]:
    """The processes that run handlers for a daemon."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "broker_worker.child" in (process / "cmdline").read_text():
                found.append(process)
    return found


# --- crashers and what can't be ended -----------------------------------------------------


@pytest.mark.timeout(600)
def test_of_a_crasher_among_thirty_one_healthy_tasks_these_are_charged_once_at_most(
    authored: Service,
) -> None:
    doomed = authored.start()
    authored.publish(*(message("healthy", f"healthy-{i}") for i in range(31)))
    authored.publish(message("kills_the_daemon", "crasher"))
    until("all run", lambda: len(authored.runs()) == 32)
    authored.gate.touch()
    assert doomed.wait() == -signal.SIGKILL

    # whoever ran beside it runs alone now, one after the other, so this takes its time
    again = authored.start(ready=False)
    assert again.wait(240) == -signal.SIGKILL
    authored.start()

    authored.until_states(seconds=240, succeeded=31, dead=1)
    authored.until_rest()
    attempts = authored.rows("SELECT attempt FROM tasks WHERE state = 'succeeded'")
    assert max(row["attempt"] for row in attempts) <= 2
    assert authored.task("crasher")["reason"] == "crashed"


@pytest.mark.parametrize(("name", "states"), [("endless.thread", "succeeded"), ("endless.swallow", "dead")])
def test_what_can_not_be_ended_is_timed_out_and_leaves_its_slot(
    authored: Service, name: str, states: str
) -> None:
    worker = authored.start(QUEUES="default:4")
    authored.publish(message(name, "t-1"))

    authored.until_states(**{states: 1})
    authored.until_rest()
    (attempt,) = authored.rows("SELECT outcome FROM attempts")
    assert attempt["outcome"] == "timeout"
    worker.wait_ready()
    assert worker.stop() == 0


def test_with_half_of_its_slots_lost_the_worker_drains_and_exits_for_its_supervisor(
    authored: Service,
) -> None:
    worker = authored.start(QUEUES="default:4")
    authored.publish(message("endless.swallow", "t-1"), message("endless.swallow", "t-2"))

    assert worker.wait() == 1
    authored.until_states(dead=2)


# --- cancel, progress, checkpoint -----------------------------------------------------------


@pytest.mark.parametrize("name", ["long.async", "long.thread", "child.long"])
@pytest.mark.parametrize("listens", [True, False], ids=["listening", "polling"])
def test_a_running_task_that_is_cancelled_ends_so(authored: Service, name: str, *, listens: bool) -> None:
    worker = authored.start(DATABASE_DIRECT_URL=authored.database_url if listens else "")
    authored.publish(message(name, "t-1"))
    until("it runs", lambda: authored.runs()["t-1"] == 1)

    authored.command("tasks", "cancel", "t-1")

    authored.until_states(cancelled=1)
    authored.until_rest()
    assert authored.runs() == {"t-1": 1}
    assert worker.stop() == 0


def test_a_cancel_outlives_the_worker_that_ran_the_task(authored: Service) -> None:
    doomed = authored.start()
    authored.publish(message("long.async", "t-1"))
    until("it runs", lambda: authored.runs()["t-1"] == 1)
    doomed.signal(signal.SIGSTOP)
    authored.command("tasks", "cancel", "t-1")
    doomed.signal(signal.SIGKILL)

    authored.start()

    authored.until_states(cancelled=1)
    authored.until_rest()
    assert authored.runs() == {"t-1": 1}


def test_an_attempt_goes_on_from_the_checkpoint_of_the_last_and_shows_its_progress(
    authored: Service,
) -> None:
    authored.start()
    authored.publish(message("resumed", "t-1"))

    authored.until_states(succeeded=1)

    assert authored.task("t-1")["result"] == "[1,2,3]"


# --- effects in the database ------------------------------------------------------------------


def test_a_transactional_handler_commits_its_writes_its_outcome_and_what_it_sends(
    authored: Service,
) -> None:
    authored.start()
    authored.publish(message("effect", "t-1"), message("effect.fails", "t-2"))

    authored.until_states(succeeded=2, dead=1)
    authored.until_rest()

    assert effects(authored) == ["t-1"]
    assert authored.task("sent-by-t-1")["result"] == '"t-1"'
    assert authored.runs() == {"t-1": 1, "t-2": 2, "sent-by-t-1": 1}


@pytest.mark.parametrize(("place", "runs"), [("committing", 2), ("committed", 1)])
def test_a_daemon_killed_around_a_handlers_commit_leaves_one_effect(
    authored: Service, place: str, runs: int
) -> None:
    doomed = authored.start(FAILPOINT=f"{place}:kill9")
    authored.publish(message("effect", "t-1"))
    assert doomed.wait() == -signal.SIGKILL

    authored.start()

    authored.until_states(succeeded=2)
    authored.until_rest()
    assert effects(authored) == ["t-1"]
    assert authored.runs() == {"t-1": runs, "sent-by-t-1": 1}


@pytest.mark.parametrize(
    ("cut_at", "runs"), [(QUERY, 2), (ANSWER, 1)], ids=["never committed", "committed, reply lost"]
)
def test_a_handlers_commit_whose_reply_is_lost_has_one_effect(
    authored: Service, cut_at: bytes, runs: int
) -> None:
    with commit_cutter(authored.database_url, marker=b"INTO effects", cut_at=cut_at) as (cutter, through):
        worker = authored.start(DATABASE_URL=through)
        authored.publish(message("effect", "t-1"))
        until("the task has succeeded", lambda: authored.states().get("succeeded", 0) > 0)
        worker.stop()  # it does not know of what it owes, and would find it two minutes later

    authored.start()

    authored.until_states(succeeded=2)
    authored.until_rest()
    assert cutter.cuts == 1
    assert effects(authored) == ["t-1"]
    assert authored.task("t-1")["attempt"] == 1
    assert authored.runs() == {"t-1": runs, "sent-by-t-1": 1}


def test_a_completion_commits_the_end_of_a_task_by_another_driver(authored: Service) -> None:
    authored.start()
    authored.publish(message("effect.psycopg", "t-1"), message("effect.forgotten", "t-2"))

    authored.until_states(succeeded=1, dead=1)
    authored.until_rest()

    assert effects(authored) == ["t-1"]
    assert authored.task("t-1")["result"] == '"by psycopg"'
    assert authored.task("t-2")["error_type"] == "NotCompletedError"


# --- resources --------------------------------------------------------------------------------


def test_resources_are_open_before_the_worker_is_ready_and_closed_after_it_has_drained(
    service: Service,
) -> None:
    service.settings = {"HANDLERS": "tests.support.shared_handlers"}
    worker = service.start()
    assert [line.split()[1] for line in service.runs_file.read_text().splitlines()] == ["opened"]
    service.publish(message("uses.shared", "t-1"))
    until("it runs", lambda: service.runs()["t-1"] == 1)

    worker.signal(signal.SIGTERM)
    service.gate.touch()

    assert worker.wait() == 0
    lines = [line.split()[1] for line in service.runs_file.read_text().splitlines()]
    assert lines == ["opened", "t-1", "used", "closed"]

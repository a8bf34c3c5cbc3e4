"""Every place of the worker with all that can happen to it there: nothing lost, doubled, or charged wrongly.

Each row runs one task of each kind, makes the daemon fail while it is at them, and has a daemon in which
nothing fails finish what is left.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from subprocess import TimeoutExpired

import pytest

from broker_worker.failpoints import PLACES, Action, can
from tests.support.daemon import DaemonProcess, until
from tests.support.failing import BATCH, Batch, FailingService, failing_service, is_reached
from tests.support.forks import Forks
from tests.support.services import RunningServers

pytestmark = pytest.mark.timeout(300)

AT_THE_END = ("draining", "drained", "releasing", "consumers_closing", "leaving")
ELSEWHERE = ("rescued", "replaying", "replayed")  # passed by other processes, see below
AT_WORK = [place for place in PLACES if place not in (*AT_THE_END, *ELSEWHERE)]
OUTBOX = (  # what is left lying there is taken again two minutes later, or as soon as its worker has gone
    *("outbox_taken", "publishing_copy", "publishing_letter", "copy_unconfirmed"),
    *("outbox_deleting", "outbox_deleted", "failure_committed", "committed", "success_committed"),
)
WITHIN_AN_ATTEMPT = ("handler_starting", "handler_ended", "child_starting", "child_ended", "committing")
MORE_BY_PLACE = {
    "child_starting": ("child",),
    "child_ended": ("child",),
    "stamped": ("stamped",),
    "decision_committed": ("scheduled",),
    "outbox_taken": ("scheduled",),
}
WRITERS = (  # passed by what works for all tasks: without it nothing can be released at the end
    *("claiming", "claim_committed", "decision_committed"),
    *("recording_success", "success_committed", "recording_failure", "failure_committed"),
    *("publishing_copy", "publishing_letter", "copy_unconfirmed", "outbox_deleting", "outbox_deleted"),
    *("outbox_taken", "beating"),
)
IS_KILLED = frozenset({Action.KILL})
IS_ASKED_TO_END = frozenset({Action.TERM, Action.HURRY})
EXIT_CODES = {Action.KILL: -signal.SIGKILL, Action.TERM: 0, Action.HURRY: 0}
ACTIONS = (Action.KILL, Action.RAISE, Action.CANCEL, Action.HANG, Action.TERM)
HURRIED_AT = (  # a second signal in the middle of a claim, a commit and an ack
    *("claiming", "claim_committed", "committing", "committed", "recording_success", "success_committed"),
    *("acking", "ack_written", "copy_unconfirmed"),
)
SECONDS_TO_END = 30.0  # what Kubernetes gives


def rows(*places: str) -> list[tuple[str, Action]]:
    found = [(place, action) for place in places for action in ACTIONS if can(action, place)]
    return found + [(place, Action.HURRY) for place in places if place in HURRIED_AT]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    running = Forks()
    yield running
    running.close()


@pytest.fixture(scope="module")
def make_service(
    running_servers: RunningServers, forks: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], FailingService]]:
    """One service for many rows, and a new one after a row that failed."""
    made: list[FailingService] = []
    with ExitStack() as stack:

        def make() -> FailingService:
            if not made or not made[-1].is_known_good:
                folder = tmp_path_factory.mktemp("failing") / "service"
                made.append(stack.enter_context(failing_service(running_servers, forks, folder)))
            return made[-1]

        yield make


@pytest.fixture
def service(make_service: Callable[[], FailingService]) -> FailingService:
    service = make_service()
    service.is_known_good = False
    return service


def end_of(worker: DaemonProcess, action: Action) -> None:
    """See a daemon end that has been made to fail, in the way that it has to, and soon."""
    if action in EXIT_CODES:
        assert worker.wait(SECONDS_TO_END) == EXIT_CODES[action]
        return
    if action is Action.HANG:
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGINT)
    else:
        worker.signal(signal.SIGTERM)
    try:
        worker.wait(SECONDS_TO_END)
    except TimeoutExpired:
        worker.signal(signal.SIGUSR1)
        until("it says where it is", lambda: "most recent call first" in worker.tail())
        raise AssertionError(f"it does not end:\n{worker.tail()}") from None


def wedges(place: str, action: Action) -> bool:
    """Whether the whole event loop stands, so that nothing but SIGKILL ends the process."""
    return action is Action.HANG and not all(each.is_awaited for each in PLACES[place])


def finish(service: FailingService, batch: Batch) -> None:
    """Let a daemon in which nothing fails do what is left, and see that all is well."""
    service.declare_dead()
    clean = service.start(HANDLERS=batch.handlers)
    batch.check()
    assert clean.stop() == 0
    service.is_known_good = True


def failing_at(place: str, action: Action, batch: Batch) -> dict[str, str]:
    """The settings of a daemon that fails so.

    Those that run as it is killed are crashers, which run alone, one every five seconds: so there are few.
    """
    few = {"QUEUES": "default:2"} if batch.allows_crashes and place not in AT_THE_END else {}
    return {"FAILPOINT": f"{place}:{action}", "HANDLERS": batch.handlers, **few}


def batch_for(service: FailingService, place: str, action: Action, *more: str) -> Batch:
    is_killed = action in IS_KILLED or wedges(place, action)
    is_charged = place in WITHIN_AN_ATTEMPT and action in {Action.RAISE, Action.CANCEL}
    kinds = (*BATCH, *MORE_BY_PLACE.get(place, ()), *more)
    dies_of_it = (place in AT_THE_END and action not in IS_ASKED_TO_END) or (
        place in WRITERS and action in {Action.CANCEL, Action.HANG}
    )
    return Batch(service, kinds, allows_failures=int(is_charged), allows_crashes=int(is_killed or dies_of_it))


@pytest.mark.parametrize(("place", "action"), rows(*AT_WORK))
def test_a_daemon_that_fails_at_work_leaves_nothing_undone_and_nothing_done_twice(
    service: FailingService, place: str, action: Action
) -> None:
    batch = batch_for(service, place, action)
    # what is scheduled has to arrive before its time; everything else may wait for a daemon that begins
    worker = service.start_with(failing_at(place, action, batch), ready="scheduled" in batch.kinds)
    batch.publish()
    until(f"it is at {place}", lambda: is_reached(worker.log))

    if wedges(place, action):
        worker.signal(signal.SIGKILL)
        worker.wait()
    elif action in {Action.RAISE, Action.CANCEL}:
        stands_still_for_nobody(service, worker)
        if place not in OUTBOX:
            # what was claimed and forgotten is released after 45 s
            until(
                "all is done, or it ends",
                lambda: batch.is_done or worker.process.poll() is not None,
                seconds=120,
            )
        end_of(worker, action)
    else:
        end_of(worker, action)

    finish(service, batch)


def stands_still_for_nobody(service: FailingService, worker: DaemonProcess) -> None:
    """See that after an error a daemon goes on to work, or ends, so that its supervisor starts another."""
    probe = Batch(service, ("plain", "effect", "fails_once"))
    probe.publish()
    # and not because it is released after 45 s
    until("it works, or ends", lambda: probe.is_done or worker.process.poll() is not None, seconds=40)


@pytest.mark.parametrize(("place", "action"), rows(*AT_THE_END))
def test_a_daemon_that_fails_at_its_end_leaves_nothing_undone_and_nothing_done_twice(
    service: FailingService, place: str, action: Action
) -> None:
    batch = batch_for(service, place, action, "slow")
    service.gate.unlink(missing_ok=True)
    worker = service.start_with(failing_at(place, action, batch))
    batch.publish()
    until("it runs", lambda: service.runs()[batch.id_of("slow")] > 0)
    worker.signal(signal.SIGTERM)
    until(f"it is at {place}", lambda: is_reached(worker.log))

    if wedges(place, action):
        worker.signal(signal.SIGKILL)
        worker.wait()
    else:
        end_of(worker, action)

    service.gate.touch()
    finish(service, batch)


@pytest.mark.parametrize(("place", "action"), rows("replaying", "replayed"))
def test_a_replay_that_fails_half_way_is_done_once_or_not_at_all(
    service: FailingService, place: str, action: Action
) -> None:
    worker = service.start()
    batch = Batch(service, ("gives_up",))
    batch.publish()
    batch.check()
    (letter,) = batch.letters()
    replay = ("dead", "replay", str(letter))

    failing, log = service.begin(*replay, FAILPOINT=f"{place}:{action}")
    until(f"it is at {place}", lambda: is_reached(log))
    if action is Action.HANG:
        failing.kill()
    failing.wait(SECONDS_TO_END)
    again, _ = service.begin(*replay)  # as the operator does who saw it fail
    again.wait(SECONDS_TO_END)

    batch.was_replayed, batch.allows_failures = True, 1
    until("it died again", lambda: service.runs()[batch.id_of("gives_up")] == 2)
    batch.check()
    audited = "SELECT action FROM broker_worker.audit WHERE dead_letter = %s"
    assert service.find(audited, letter) == [{"action": "replay"}]
    assert worker.stop() == 0
    service.is_known_good = True


@pytest.mark.parametrize(("place", "action"), rows("rescued"))
def test_a_rescue_that_fails_half_way_is_done_once_by_the_next(
    service: FailingService, place: str, action: Action
) -> None:
    batch = Batch(service, ("plain", "effect"), allows_crashes=1 + (action is Action.KILL))
    first = service.start(FAILPOINT="handler_starting:stop", QUEUES="default:2")
    batch.publish()
    until("it runs", lambda: is_reached(first.log))
    first.signal(signal.SIGKILL)
    first.wait()
    rescuer = service.start(FAILPOINT=f"{place}:{action}")
    held = "SELECT 1 FROM broker_worker.tasks WHERE state = 'running' AND has_body AND message_id LIKE %s"
    until("its body is kept", lambda: service.find(held, f"{batch.name}-%"))
    service.declare_dead(first.process.pid)
    until(f"it is at {place}", lambda: is_reached(rescuer.log))
    end_of(rescuer, action)

    finish(service, batch)

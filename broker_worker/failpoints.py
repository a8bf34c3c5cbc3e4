"""Places where tests make a process die, stop, hang or fail; not even imported by any other process.

`BROKER_WORKER_FAILPOINT=place:action[:nth]`, several with commas: at the nth time (default 1) that the
process passes the place, the action happens, once. A place is the beginning or the end of a method, which
is wrapped at the start. So the ordinary code has no call sites, and where nothing is named it costs nothing.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from broker_worker.amqp.consumer import Consumption
from broker_worker.amqp.delivery import Acker, AmqpDelivery
from broker_worker.amqp.publisher import Publisher
from broker_worker.errors import ConfigurationError
from broker_worker.message import ATTEMPT, EPOCH
from broker_worker.outgoing import Kind, Outgoing
from broker_worker.services.relay import Relay
from broker_worker.store.arrivals import Arrivals
from broker_worker.store.dead_letters import Desk
from broker_worker.store.later_claims import LaterClaims
from broker_worker.store.outbox import OutboxStore
from broker_worker.store.outcomes import Outcomes
from broker_worker.store.rescue import RescueStore
from broker_worker.store.transactions import Transaction
from broker_worker.store.workers import WorkerStore
from broker_worker.worker.daemon import Daemon
from broker_worker.worker.executor import Executor
from broker_worker.worker.intake import Intake
from broker_worker.worker.letters import LetterReader
from broker_worker.worker.processes import Child
from broker_worker.worker.processor import Processor

VARIABLE = "BROKER_WORKER_FAILPOINT"
REACHED = "failpoint reached:"
FOR_EVER = 1_000_000.0  # seconds


class FailpointError(Exception):
    """What `raise` raises: a fault that nobody foresaw."""


class Action(StrEnum):
    """What happens at a place."""

    KILL = "kill9"
    EXIT = "exit"  # at once, with status 1 and without a goodbye
    STOP = "stop"  # suspended, until somebody lets it go on
    TERM = "term"  # asked to end, and goes on
    HURRY = "hurry"  # asked to end and to be quick about it, and goes on
    RAISE = "raise"
    CANCEL = "cancel"  # the asyncio task that passes, as by whoever owns it
    HANG = "hang"  # the asyncio task that passes, for ever; in a plain function all of the process


SIGNALS = {
    Action.KILL: (signal.SIGKILL,),
    Action.STOP: (signal.SIGSTOP,),
    Action.TERM: (signal.SIGTERM,),
    Action.HURRY: (signal.SIGTERM, signal.SIGINT),
}
OF_THE_PROCESS = frozenset({*SIGNALS, Action.EXIT})

# Whether a call counts: of its arguments after `self`, and of what it returned (nothing before the call).
Counts = Callable[[tuple[Any, ...], Any], bool]


@dataclass(frozen=True, slots=True)
class Place:
    """The beginning or the end of a method."""

    owner: type
    method: str
    is_end: bool
    counts: Counts = lambda *_: True
    is_callback: bool = False  # called by the event loop or by a library, in no asyncio task of ours

    @property
    def function(self) -> Callable[..., Any]:
        """The method as it stands."""
        found: Callable[..., Any] = inspect.getattr_static(self.owner, self.method)
        return found

    @property
    def is_awaited(self) -> bool:
        """Whether its callers await it, a plain function that returns an awaitable among them."""
        return inspect.iscoroutinefunction(self.function) or "Awaitable" in str(
            self.function.__annotations__.get("return", "")
        )


def begin(owner: type, method: str, counts: Counts = lambda *_: True, *, is_callback: bool = False) -> Place:
    """Name the moment before a method."""
    return Place(owner, method, is_end=False, counts=counts, is_callback=is_callback)


def end(owner: type, method: str, counts: Counts = lambda *_: True, *, is_callback: bool = False) -> Place:
    """Name the moment after a method, before its caller knows of it."""
    return Place(owner, method, is_end=True, counts=counts, is_callback=is_callback)


def _did_something(_: tuple[Any, ...], returned: Any) -> bool:  # noqa: ANN401 - of whatever type
    return bool(returned)


def _is_of(kind: Kind) -> Counts:
    def counts(arguments: tuple[Any, ...], _: object) -> bool:
        return bool(arguments[0].kind is kind and not _is_stamp(arguments[0]))

    return counts


def _has_begun(kind: Kind) -> Counts:
    return lambda arguments, returned: bool(returned and arguments[0].kind is kind)


def _is_confirmed(kind: Kind) -> Counts:
    return lambda arguments, _: bool(arguments[1] is None and arguments[0].outgoing.kind is kind)


def _is_stamp(outgoing: Outgoing) -> bool:
    """Whether it is a stranger's message with an id of ours: the only publish that passes the outbox by."""
    headers = outgoing.properties.headers
    return outgoing.kind is Kind.COPY and headers.get(EPOCH) == 0 and headers.get(ATTEMPT) == 0


PLACES: Mapping[str, tuple[Place, ...]] = {
    # the path of one delivery
    "received": (begin(Processor, "process"),),
    "decoded": (end(Processor, "_decode"),),
    "claiming": (begin(Arrivals, "commit"),),
    "claim_committed": (  # and this process does not know it yet
        end(Arrivals, "_claim_new", _did_something),
        end(LaterClaims, "claim", _did_something),
    ),
    "decision_committed": (end(Arrivals, "_decide", _did_something),),  # likewise
    "claimed": (begin(Processor, "_execute"),),
    "handler_starting": (begin(Executor, "_call"),),
    "handler_ended": (end(Executor, "_call"),),
    "child_starting": (begin(Child, "run"),),
    "child_ended": (end(Child, "run"),),
    "committing": (begin(Transaction, "commit"),),
    "committed": (end(Transaction, "commit"),),
    "executed": (begin(Processor, "_record"),),
    "recording_success": (begin(Outcomes, "commit_successes"),),
    "success_committed": (end(Outcomes, "commit_successes"),),  # and the delivery's task has not heard of it
    "recording_failure": (begin(Outcomes, "commit_others"),),
    "failure_committed": (end(Outcomes, "commit_others"),),  # likewise
    "recorded": (begin(Processor, "_ack"),),
    "acking": (begin(AmqpDelivery, "ack"),),
    "ack_written": (end(Acker, "flush", is_callback=True),),
    "acked": (end(Processor, "_ack"),),
    "stamped": (end(Publisher, "publish", lambda arguments, _: _is_stamp(arguments[0])),),
    "letter_received": (begin(LetterReader, "process"),),
    # the outbox
    "outbox_taken": (end(OutboxStore, "take", _did_something),),
    "publishing_copy": tuple(begin(Publisher, way, _is_of(Kind.COPY)) for way in ("begin", "publish")),
    "publishing_letter": tuple(
        begin(Publisher, way, _is_of(Kind.DEAD_LETTER)) for way in ("begin", "publish")
    ),
    "copy_unconfirmed": (end(Publisher, "begin", _has_begun(Kind.COPY)),),
    "copy_confirmed": (begin(Relay, "_note", _is_confirmed(Kind.COPY), is_callback=True),),
    "letter_confirmed": (begin(Relay, "_note", _is_confirmed(Kind.DEAD_LETTER), is_callback=True),),
    "outbox_deleting": (begin(OutboxStore, "delete"),),
    "outbox_deleted": (end(OutboxStore, "delete"),),
    # what others left behind
    "beating": (begin(WorkerStore, "beat"),),
    "rescued": (end(RescueStore, "rescue", _did_something),),
    "replaying": (end(Desk, "_send_again"),),  # written and not committed
    "replayed": (end(Desk, "replay"),),
    # the end
    "draining": (begin(Daemon, "_wind_down"),),
    "drained": (begin(Intake, "cut"),),
    "releasing": (begin(Daemon, "_release_one"),),
    "consumers_closing": (begin(Consumption, "close"),),
    "leaving": (begin(WorkerStore, "leave"),),
}


@dataclass(slots=True)
class Failpoint:
    """One action at one place, at the nth time that it is passed."""

    place: str
    action: Action
    nth: int
    passed: int = 0

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Read `place:action[:nth]`.

        Raises:
            ConfigurationError: there is no such place or action, or the action can't happen there.
        """
        name, action, nth = [*text.strip().split(":"), "", "1"][:3]
        if name not in PLACES or action not in set(Action) or not (nth or "1").isdecimal():
            raise ConfigurationError(f"{VARIABLE}: {text!r} is not a place and an action of failpoints.py")
        found = cls(name, Action(action), int(nth or "1"))
        if not can(found.action, found.place):
            raise ConfigurationError(f"{VARIABLE}: no asyncio task of ours passes {name!r}")
        return found

    def is_reached(self) -> bool:
        """Count a pass, and say whether it is the one; then standard error says so, too."""
        self.passed += 1
        if self.passed != self.nth:
            return False
        os.write(sys.stderr.fileno(), f"{REACHED} {self.place}:{self.action}\n".encode())
        return True


def can(action: Action, place: str) -> bool:
    """Whether an action makes sense at a place: a callback can't be cancelled, and none of ours raises."""
    is_callback = any(each.is_callback for each in PLACES[place])
    return not is_callback or action in OF_THE_PROCESS


def arm(text: str) -> None:
    """Wrap the methods of every place that `text` names. Call it before any object of theirs is made.

    Raises:
        ConfigurationError: `text` can't be understood.
    """
    for failpoint in [Failpoint.parse(each) for each in text.split(",") if each.strip()]:
        for place in PLACES[failpoint.place]:
            setattr(place.owner, place.method, _wrapped(place, failpoint))


def _wrapped(place: Place, failpoint: Failpoint) -> Callable[..., Any]:
    function = place.function

    def is_reached(arguments: tuple[Any, ...], returned: object = None) -> bool:
        return place.counts(arguments, returned) and failpoint.is_reached()

    @functools.wraps(function)
    def called(self: object, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - of any method
        if not place.is_end and is_reached(arguments):
            _act_at_once(failpoint.action)
        returned = function(self, *arguments, **options)
        if place.is_end and is_reached(arguments, returned):
            _act_at_once(failpoint.action)
        return returned

    @functools.wraps(function)
    async def awaited(self: object, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - of any method
        if not place.is_end and is_reached(arguments):
            await _act(failpoint.action)
        returned = await function(self, *arguments, **options)
        if place.is_end and is_reached(arguments, returned):
            await _act(failpoint.action)
        return returned

    return awaited if place.is_awaited else called


async def _act(action: Action) -> None:
    match action:
        case Action.HANG:
            await asyncio.sleep(FOR_EVER)
        case Action.CANCEL:
            _cancel()
            await asyncio.sleep(0)  # it arrives here
        case _:
            _act_at_once(action)


def _act_at_once(action: Action) -> None:
    """Act without waiting: a task that is cancelled hears of it at its next await."""
    for number in SIGNALS.get(action, ()):
        os.kill(os.getpid(), number)
    match action:
        case Action.EXIT:
            os._exit(1)
        case Action.RAISE:
            raise FailpointError("this failpoint raises")
        case Action.CANCEL:
            _cancel()
        case Action.HANG:
            time.sleep(FOR_EVER)
        case _:
            pass


def _cancel() -> None:
    task: asyncio.Task[Any] | None = asyncio.current_task()
    if task is not None:
        task.cancel()

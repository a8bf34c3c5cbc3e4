"""What a move is made of: where it starts from, what it changes, and how a commit changes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from broker_worker.task import Holder
from tests.model.code import Change
from tests.model.rules import ALL_KEPT, Rules
from tests.model.state import Messages, Row, Worker


@dataclass(frozen=True)
class Scope:
    """How large a world is, and what can happen in it besides crashes, lost channels and lost replies."""

    name: str
    workers: int = 2
    slots: int = 1  # runs of this task that a worker has room for
    published: int = 1
    room: int = 3  # messages of the task, beyond which nothing adds another that does not have to
    losses: int = 0
    is_transactional: bool = False
    with_late_acks: bool = False  # else a delivery that needs no run is acked in the moment of its commit
    with_cancel: bool = False
    with_replay: bool = False
    with_late_statements: bool = False  # that are executed when nobody waits for them any more
    with_giving_up: bool = False  # by the broker
    with_circumstances: bool = False  # refusals, dates, a busy lane
    with_sending: bool = False  # a handler of another task sends this one, too
    with_final_failures: bool = False  # a handler may give up


class Crowd(IntEnum):
    """How many messages of the task there are."""

    ROOM = 0
    FULL = 1
    OVER = 2


class Hands(IntEnum):
    """What workers have of the task's messages, at most."""

    EMPTY = 0
    STALE = 1
    CURRENT = 2


class View(NamedTuple):
    """The world as one worker's moves depend on it, or those of nobody in particular."""

    row: Row | None
    messages: Messages
    me: Worker
    holder: Holder  # of the row, as far as it is not me: somebody alive, or dead
    crowd: Crowd
    hands: Hands = Hands.EMPTY  # of all workers; only for moves of nobody in particular

    @property
    def has_room(self) -> bool:
        return self.crowd is Crowd.ROOM


class Kind(IntEnum):
    """What may be relied on."""

    PROGRESS = 0  # happens sooner or later
    RETURN = 1  # so does one of these two
    FAILURE = 2
    ADVERSE = 3  # happens or not


class Move(NamedTuple):
    """One step of the world."""

    label: str
    kind: Kind
    row: Row | None
    messages: Messages
    me: Worker
    ages: bool = False  # everybody's copies and runs are stale now
    names_me: bool = False  # the row says that I run it
    acks: bool = False
    breaks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A scope and the rules that are kept in it."""

    scope: Scope
    rules: Rules = ALL_KEPT


def committed(view: View, change: Change, rules: Rules = ALL_KEPT) -> View:
    """The world after a commit: the row, what it owes, and the age of everything else."""
    row, messages, me = change.row, view.messages, view.me
    if change.ages:
        messages, me = messages.aged(), me.aged()
    if change.sends_copy and rules.owes_with_state:
        messages = messages._replace(owed=messages.owed.plus(is_current=True))
    if row.is_waiting and not rules.keeps_body_while_waiting:
        row = row._replace(has_body=False)
    return view._replace(row=row, messages=messages, me=me)


def move(
    label: str,
    view: View,
    kind: Kind = Kind.PROGRESS,
    *,
    change: Change | None = None,
    names_me: bool = False,
    acks: bool = False,
    breaks: tuple[str, ...] = (),
) -> Move:
    """A move to `view`, by way of `change`."""
    return Move(
        label,
        kind,
        view.row,
        view.messages,
        view.me,
        ages=change.ages if change else False,
        names_me=names_me,
        acks=acks,
        breaks=(*(change.breaks if change else ()), *breaks),
    )

"""What is done to the workers: by publishers and operators, by the broker, by crashes, by broken wires."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from broker_worker.task import TaskState
from tests.model.code import cancelled, replayed, sent
from tests.model.moves import Case, Crowd, Kind, Move, View, committed, move
from tests.model.services import dropped, killed
from tests.model.state import Life, Mark


def of_people(view: View, case: Case) -> Iterator[Move]:
    """Publishers and operators."""
    row, messages = view.row, view.messages
    if messages.unpublished:
        published = messages._replace(
            unpublished=messages.unpublished - 1, ready=messages.ready.plus(is_current=row is None)
        )
        yield move("is published", view._replace(messages=published))
    if case.scope.with_sending and row is None:
        change = sent()
        yield move("is sent by a handler", committed(view, change, case.rules), Kind.ADVERSE, change=change)
    if row is None:
        return
    if case.scope.with_cancel and not row.is_terminal and not row.is_cancel_requested:
        change = cancelled(row)
        yield move("an operator cancels", committed(view, change, case.rules), Kind.ADVERSE, change=change)
    is_replayable = row.state is TaskState.DEAD and row.mark is not Mark.LOST
    if case.scope.with_replay and is_replayable and view.has_room:
        change = replayed(row)
        if not case.rules.bumps_epoch_at_replay:
            change = replace(change, ages=False)
        yield move("an operator replays", committed(view, change, case.rules), Kind.ADVERSE, change=change)


def of_broker(view: View, case: Case) -> Iterator[Move]:
    """What the broker does with messages on its own."""
    messages = view.messages
    for is_current in messages.ready.kinds():
        less = messages._replace(ready=messages.ready.minus(is_current=is_current))
        if case.scope.with_giving_up:
            given_up = less._replace(given_up=messages.given_up.plus(is_current=is_current))
            yield move("the broker gives it up", view._replace(messages=given_up), Kind.ADVERSE)
        if messages.losses and view.row is not None:  # before, nobody else knows of it
            lost = less._replace(losses=messages.losses - 1, has_lost=True)
            yield move("the broker loses it", view._replace(messages=lost), Kind.ADVERSE)


def of_faults(view: View, case: Case) -> Iterator[Move]:
    """What happens to one worker."""
    me = view.me
    if me.life is Life.UP:
        # it was stopped for a while, or slow, and looked dead to another
        yield move("is declared dead alive", view._replace(me=me._replace(life=Life.ZOMBIE)), Kind.ADVERSE)
    if not me.is_there or view.crowd is Crowd.OVER:
        return
    # what a worker claimed without knowing, and the broker lost, waits for that worker's end
    kind = Kind.PROGRESS if view.messages.has_lost else Kind.ADVERSE
    yield move("is killed", killed(view), kind)
    hands = me.hands()
    if any(not each.is_letter for each in hands):
        yield move("loses its channel", dropped(view, letters=False), Kind.ADVERSE)
    if any(each.is_letter for each in hands):
        yield move("loses the channel of its letters", dropped(view, others=False), Kind.ADVERSE)

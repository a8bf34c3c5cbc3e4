"""What the services of any worker do: relay, rescuer, heartbeat. Each is one statement's decision."""

from __future__ import annotations

from collections.abc import Iterator

from broker_worker.task import Holder
from tests.model.code import given_up_for_lost, reemitted, released, rescued
from tests.model.moves import Case, Hands, Kind, Move, View, committed, move
from tests.model.state import Life


def of_everybody(view: View, case: Case) -> Iterator[Move]:
    """What any worker does, whoever runs the task."""
    yield from _relayed(view, case)
    yield from _rescued(view, case)
    yield from _overdue(view, case)


def of_one(view: View, case: Case) -> Iterator[Move]:
    """What a worker's heartbeat does for itself, and others for it."""
    me, row = view.me, view.row
    if me.life is Life.ZOMBIE:
        yield move("finds itself dead, exits", _gone(view, Life.DEAD))
    if me.life is Life.GONE:
        yield move("is declared dead", view._replace(me=me._replace(life=Life.DEAD)))
    is_forgotten = row is not None and row.is_running and row.has_body and me.is_named and not me.runs
    if me.life is Life.UP and is_forgotten and case.rules.releases_forgotten:
        assert row is not None
        change = released(row)
        after = committed(view, change, case.rules)
        yield move("releases what it has forgotten", after, change=change)


def _relayed(view: View, case: Case) -> Iterator[Move]:
    """Publish, wait for the confirm, delete. In between it may be sent again, by this relay or another."""
    messages = view.messages
    for is_current in messages.owed.kinds():
        which = "the current" if is_current else "a stale"
        deleted = messages._replace(owed=messages.owed.minus(is_current=is_current))
        sent = deleted._replace(ready=messages.ready.plus(is_current=is_current))
        yield move(f"{which} copy is published and deleted", view._replace(messages=sent))
        if view.has_room:
            twice = messages._replace(ready=sent.ready)
            yield move(f"{which} copy is published", view._replace(messages=twice), Kind.ADVERSE)
        if not is_current or not case.rules.drops_only_stale_copies:
            yield move(f"{which} copy is deleted unsent", view._replace(messages=deleted))
        if not case.rules.publishes_before_deleting:
            yield move(
                "the copy is deleted, and then not sent", view._replace(messages=deleted), Kind.ADVERSE
            )


def _rescued(view: View, case: Case) -> Iterator[Move]:
    """What runs under a dead worker: sent again if its body is here, buried if nothing of it is left."""
    row = view.row
    if row is None or not row.is_running:
        return
    is_abandoned = view.holder is Holder.DEAD or not case.rules.rescues_from_the_dead_only
    if row.has_body:
        if is_abandoned:
            change = rescued(row)
            yield move("is rescued", committed(view, change, case.rules), change=change)
    elif is_abandoned and _is_nowhere(view, case):
        change = given_up_for_lost(row)
        breaks = () if view.messages.has_lost else ("lost",)
        yield move("is buried as lost", committed(view, change, case.rules), change=change, breaks=breaks)


def _is_nowhere(view: View, case: Case) -> bool:
    """That no message came for six hours stands for: there is none."""
    is_nowhere = view.messages.total == 0 and view.hands is Hands.EMPTY
    return is_nowhere or not case.rules.looks_for_messages_before_burying


def _overdue(view: View, case: Case) -> Iterator[Move]:
    """A waiting task whose copy does not come is sent again; needlessly, if the copy is only late."""
    row = view.row
    if row is None or not row.is_waiting or not row.has_body or view.messages.owed.total:
        return
    is_needed = view.messages.current == 0 and view.hands is not Hands.CURRENT
    if not case.rules.reemits or not (is_needed or view.has_room):
        return
    change = reemitted(row)
    kind = Kind.PROGRESS if is_needed else Kind.ADVERSE
    yield move("is sent again, overdue", committed(view, change, case.rules), kind, change=change)


def _gone(view: View, life: Life) -> View:
    """The process ends: its runs with it, and its deliveries go back."""
    return dropped(view)._replace(me=view.me._replace(life=life, runs=(), deliveries=()))


def dropped(view: View, *, letters: bool = True, others: bool = True) -> View:
    """A channel is gone: the deliveries on it go back, and runs go on without."""
    messages, me = view.messages, view.me
    lost = [each for each in me.hands() if (letters if each.is_letter else others)]
    for each in lost:
        place = "given_up" if each.is_letter else "ready"
        pile = getattr(messages, place).plus(is_current=each.is_current)
        messages = messages._replace(**{place: pile})
    me = me._replace(deliveries=tuple(each for each in me.deliveries if each not in lost))
    for run in me.runs:
        if run.delivery in lost:
            me = me.without_run(run).with_run(run._replace(delivery=None))
    return view._replace(messages=messages, me=me)


def killed(view: View) -> View:
    """The process is killed."""
    return _gone(view, Life.DEAD if view.me.is_declared_dead else Life.GONE)

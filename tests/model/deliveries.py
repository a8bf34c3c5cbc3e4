"""What a worker does with a delivery: fetch it, decide it under the row's lock, ack it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from broker_worker.task import (
    Adopted,
    Claimed,
    Duplicate,
    GivenBody,
    Holder,
    NeedsLane,
    NeedsSlot,
    Resumed,
)
from tests.model.code import Answer, Change, Manner, met
from tests.model.moves import Case, Kind, Move, View, committed, move
from tests.model.rules import Rules
from tests.model.state import Delivery, Flight, Phase, Row, Run

CIRCUMSTANCES = (
    Manner.LANE_BUSY,
    Manner.UNKNOWN_TASK,
    Manner.REFUSED,
    Manner.NOT_YET,
    Manner.TOO_LATE,
    Manner.OUT_OF_TIME,
)


def of_deliveries(view: View, case: Case) -> Iterator[Move]:
    """Everything that a worker may do with messages, apart from running them."""
    if not view.me.is_there:
        return
    yield from _fetched(view)
    for delivery in dict.fromkeys(view.me.deliveries):
        if delivery.is_settled:
            acked = view._replace(me=view.me.without_delivery(delivery))
            yield move("acks", acked, acks=True)
        else:
            yield from _decided(view, delivery, case)


def _fetched(view: View) -> Iterator[Move]:
    messages, me = view.messages, view.me
    for is_current in messages.ready.kinds():
        left = messages._replace(ready=messages.ready.minus(is_current=is_current))
        yield move("gets a delivery", view._replace(messages=left, me=me.with_delivery(Delivery(is_current))))
    for is_current in messages.given_up.kinds():
        left = messages._replace(given_up=messages.given_up.minus(is_current=is_current))
        letter = Delivery(is_current, is_letter=True)
        yield move(
            "reads a letter of the broker's", view._replace(messages=left, me=me.with_delivery(letter))
        )


def _decided(view: View, delivery: Delivery, case: Case) -> Iterator[Move]:
    """Decide in every manner in which it may come, each different answer once."""
    seen = set[Answer]()
    for manner in _manners(delivery, case):
        answer = _answer(view, delivery, manner, case)
        if answer in seen:
            continue
        seen.add(answer)
        kind = Kind.PROGRESS if manner in {Manner.AS_USUAL, Manner.GIVEN_UP} else Kind.ADVERSE
        if delivery.is_letter and not case.rules.brings_back_what_the_broker_gave_up:
            answer = Answer(Duplicate(), None)
        yield from _done(view, delivery, answer, kind=kind, case=case)


def _manners(delivery: Delivery, case: Case) -> tuple[Manner, ...]:
    if delivery.is_letter:
        return Manner.GIVEN_UP, Manner.EXPIRED
    return (Manner.AS_USUAL, *CIRCUMSTANCES) if case.scope.with_circumstances else (Manner.AS_USUAL,)


def _answer(view: View, delivery: Delivery, manner: Manner, case: Case) -> Answer:
    row, rules = view.row, case.rules
    has_slot = delivery.is_letter or len(view.me.runs) < case.scope.slots
    is_current = delivery.is_current or not rules.only_current_copies_claim
    if (
        row is not None
        and row.is_running
        and row.is_cancel_requested
        and not rules.honours_cancel_at_takeover
    ):
        asked = row._replace(is_cancel_requested=False)
        answer = met(
            asked, is_current=is_current, holder=_holder(view, rules), has_slot=has_slot, manner=manner
        )
    else:
        answer = met(
            row, is_current=is_current, holder=_holder(view, rules), has_slot=has_slot, manner=manner
        )
    return Answer(answer.decision, _broken(answer.change, row, answer, rules) if answer.change else None)


def _holder(view: View, rules: Rules) -> Holder:
    """What the row and this worker's memory say of who runs it."""
    row, me = view.row, view.me
    if row is None or not row.is_running:
        return Holder.NOBODY
    if me.is_named:
        run = next((run for run in me.runs if run.is_current), None)
        if run is None or (run.delivery is None and not rules.adopts):
            return Holder.HERE_FORGOTTEN if rules.doubts_its_memory else Holder.HERE
        is_here = run.delivery is not None or run.phase is Phase.ABANDONED
        return Holder.HERE if is_here else Holder.HERE_ADRIFT
    if view.holder is Holder.ELSEWHERE and not rules.takes_over_from_the_dead_only:
        return Holder.DEAD
    return view.holder


def _broken(change: Change, row: Row | None, answer: Answer, rules: Rules) -> Change:
    """The change as a mutant would write it."""
    after = change.row
    if isinstance(answer.decision, Claimed) and row is not None:
        if not (rules.charges_takeovers if row.is_running else rules.charges_retries):
            change = replace(change, row=after._replace(attempt=row.attempt))
        if not rules.bumps_epoch_at_claim:
            change = replace(change, ages=False)
    if isinstance(answer.decision, GivenBody) and not rules.gives_body and row is not None:
        change = replace(change, row=row)
    return change


def _done(view: View, delivery: Delivery, answer: Answer, *, kind: Kind, case: Case) -> Iterator[Move]:
    me = view.me
    match answer.decision:
        case NeedsSlot() | NeedsLane():
            return
        case Claimed():
            assert answer.change is not None
            yield from _claimed(view, delivery, answer.change, kind=kind, case=case)
        case Resumed():
            run = Run(Phase.RUNNING, is_current=True, delivery=delivery)
            resumed = view._replace(me=me.without_delivery(delivery).with_run(run))
            yield move("runs under its own claim that its memory did not know", _started(resumed), kind)
        case Adopted():
            run = next(run for run in me.runs if run.is_current)
            adopted = me.without_delivery(delivery).without_run(run).with_run(run._replace(delivery=delivery))
            yield move("lets it take the place of the lost delivery", view._replace(me=adopted), kind)
        case decision:
            after = committed(view, answer.change, case.rules) if answer.change else view
            name = type(decision).__name__
            settled = _settled(after, delivery, case)
            yield move(
                f"decides {name}", settled, kind, change=answer.change, acks=not case.scope.with_late_acks
            )
            if answer.change and view.has_room:
                yield move(f"decides {name}, reply lost", after, Kind.ADVERSE, change=answer.change)


def _settled(after: View, delivery: Delivery, case: Case) -> View:
    """The same with the delivery, which the commit may have aged, acked or to be acked."""
    if delivery not in after.me.deliveries:
        delivery = delivery._replace(is_current=False)
    me = after.me.without_delivery(delivery)
    if case.scope.with_late_acks:
        me = me.with_delivery(delivery._replace(is_settled=True))
    return after._replace(me=me)


def _claimed(view: View, delivery: Delivery, change: Change, *, kind: Kind, case: Case) -> Iterator[Move]:
    after = committed(view, change, case.rules)
    is_takeover = view.row is not None and view.row.is_running
    breaks = () if change.ages and (delivery.is_current or is_takeover) else ("once",)
    if view.row is not None and view.row.is_cancel_requested:
        breaks = (*breaks, "cancel")
    held = delivery._replace(is_current=False) if change.ages else delivery
    run = Run(Phase.RUNNING, is_current=True, delivery=held)
    known = after._replace(me=after.me.without_delivery(held).with_run(run))
    yield move("claims", _started(known), kind, change=change, names_me=True, breaks=breaks)
    if not case.rules.settles_only_what_is_committed:
        lost = view._replace(me=view.me.without_delivery(delivery))
        yield move("claims, and acks before it hears that it did not", lost, Kind.ADVERSE, acks=True)
    yield move("claims, reply lost", after, Kind.ADVERSE, change=change, names_me=True, breaks=breaks)
    if case.scope.with_late_statements and not is_takeover and view.me.flight is Flight.NONE:
        flying = view._replace(me=view.me._replace(flight=Flight.CLAIM))
        yield move("sends a claim, and hears nothing", flying, Kind.ADVERSE)


def _started(view: View) -> View:
    assert view.row is not None
    return view._replace(row=view.row._replace(starts=view.row.starts + 1))

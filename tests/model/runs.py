"""What a worker does with a run: execute, record under the fence, ack; and what Postgres executes late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from broker_worker.task import Claimed, Holder, TaskState
from tests.model.code import INTERRUPTIONS_LEFT, Change, Manner, met, recorded
from tests.model.moves import Case, Kind, Move, View, committed, move
from tests.model.rules import Rules
from tests.model.state import Flight, Mark, Phase, Row, Run

_ENDED = {Phase.RETURNED, Phase.FAILED, Phase.GAVE_UP, Phase.INTERRUPTED}
_FLIGHT_BY_PHASE = {Phase.RETURNED: Flight.SUCCESS, Phase.FAILED: Flight.POSTPONEMENT}
_PHASE_BY_FLIGHT = {flight: phase for phase, flight in _FLIGHT_BY_PHASE.items()}


def of_runs(view: View, case: Case) -> Iterator[Move]:
    """Everything that a worker may do with its runs."""
    if view.me.flight is not Flight.NONE:
        yield from _landed(view, case)
    if not view.me.is_there:
        return
    for run in dict.fromkeys(view.me.runs):
        if run.phase is Phase.RUNNING:
            yield from _executed(view, run, case)
        elif run.phase in _ENDED:
            yield from _recorded(view, run, case)
        elif run.phase is Phase.RECORDED:
            done = view._replace(me=view.me.without_run(run))
            yield move(
                "acks its run" if run.delivery else "forgets its run", done, acks=run.delivery is not None
            )
            if case.rules.carries_on_after_own_errors and run.delivery is not None:
                again = done._replace(me=done.me.with_delivery(run.delivery))
                yield move("meets its row again after an error of its own", again, Kind.ADVERSE)


# --- execute ------------------------------------------------------------------------


def _executed(view: View, run: Run, case: Case) -> Iterator[Move]:
    if case.scope.is_transactional:
        yield from _committed_by_handler(view, run, case)
    else:
        yield move("handler returns", _turned(view, run, Phase.RETURNED), Kind.RETURN)
    yield move("handler fails", _turned(view, run, Phase.FAILED), Kind.FAILURE)
    if case.scope.with_final_failures:
        yield move("handler gives up", _turned(view, run, Phase.GAVE_UP), Kind.ADVERSE)
    if not case.rules.acks_after_record and run.delivery is not None:
        early = view.me.without_run(run).with_run(run._replace(delivery=None))
        yield move("acks before the outcome", view._replace(me=early), acks=True)
    if case.rules.carries_on_after_own_errors:
        yield move("is interrupted", _turned(view, run, Phase.INTERRUPTED), Kind.ADVERSE)
    elif run.delivery is not None:
        left = view.me.without_run(run).with_run(run._replace(phase=Phase.ABANDONED, delivery=None))
        left = left.with_delivery(run.delivery)
        yield move("abandons its run by an error of its own", view._replace(me=left), Kind.ADVERSE)


def _committed_by_handler(view: View, run: Run, case: Case) -> Iterator[Move]:
    """A transaction of the handler's: its effects and the fenced row, last, in one commit."""
    unknown = Phase.INTERRUPTED if case.rules.looks_after_unknown_commit else Phase.RECORDED
    yield move("handler's commit is not made, reply lost", _turned(view, run, unknown), Kind.ADVERSE)
    if case.scope.with_late_statements and view.me.flight is Flight.NONE and run.is_current:
        sent = _turned(view, run, unknown)
        flying = sent._replace(me=sent.me._replace(flight=Flight.SUCCESS))
        yield move("handler's commit is under way, connection lost", flying, Kind.ADVERSE)
    if not _claim_holds(view, run, case.rules):
        yield move(
            "handler's transaction finds its claim lost", _turned(view, run, Phase.INTERRUPTED), Kind.RETURN
        )
        return
    assert view.row is not None
    change = _written(view.row, Phase.RETURNED, case.rules)
    after = committed(view, change, case.rules)
    yield move("handler's commit", _turned(after, run, Phase.RECORDED), Kind.RETURN, change=change)
    yield move("handler's commit, reply lost", _turned(after, run, unknown), Kind.ADVERSE, change=change)


# --- record ---------------------------------------------------------------------------


def _recorded(view: View, run: Run, case: Case) -> Iterator[Move]:
    """Write the outcome under the fence, as often as it takes; without a claim, decide the delivery anew."""
    if _claim_holds(view, run, case.rules):
        assert view.row is not None
        change = _written(view.row, run.phase, case.rules)
        after = committed(view, change, case.rules)
        label = f"records {run.phase.name}"
        yield move(label, _turned(after, run, Phase.RECORDED), change=change)
        if case.rules.looks_after_unknown_commit:
            yield move(f"{label}, reply lost", after, Kind.ADVERSE, change=change)
        flight = _FLIGHT_BY_PHASE.get(run.phase)
        if case.scope.with_late_statements and flight and view.me.flight is Flight.NONE and run.is_current:
            flying = view._replace(me=view.me._replace(flight=flight))
            yield move(f"sends its {flight.name}, and hears nothing", flying, Kind.ADVERSE)
    elif run.is_current and view.me.is_named:
        yield move("finds its outcome recorded", _turned(view, run, Phase.RECORDED))
    else:
        me = view.me.without_run(run)
        if run.delivery is not None:
            me = me.with_delivery(run.delivery)
        yield move("finds its claim lost", view._replace(me=me))


def _claim_holds(view: View, run: Run, rules: Rules) -> bool:
    """The fence: epoch, worker and state."""
    if view.row is None or (rules.fences_by_state and not view.row.is_running):
        return False
    return (run.is_current and view.me.is_named) or not rules.fences_by_claim


def _written(row: Row, phase: Phase, rules: Rules) -> Change:
    if rules.bounds_interruptions:
        change = recorded(row, phase)
    else:
        change = recorded(row._replace(interruptions=0), phase)
        count = min(row.interruptions + change.row.interruptions, INTERRUPTIONS_LEFT)
        change = replace(change, row=change.row._replace(interruptions=count))
    if phase is Phase.INTERRUPTED and change.row.is_waiting and not rules.owes_when_released:
        change = replace(change, sends_copy=False)
    return change


def _turned(view: View, run: Run, phase: Phase) -> View:
    """The same with the run one phase on."""
    return view._replace(me=view.me.without_run(run).with_run(run._replace(phase=phase)))


# --- late ------------------------------------------------------------------------------


def _landed(view: View, case: Case) -> Iterator[Move]:
    """A statement that is executed when nobody waits for it, or lost for good."""
    row, me = view.row, view.me._replace(flight=Flight.NONE)
    yield move("a statement of its own is lost for good", view._replace(me=me))
    rest = view._replace(me=me)
    if view.me.flight is Flight.CLAIM:
        is_wanted = row is None or (not row.is_cancel_requested and row.mark is not Mark.CRASHED)
        answer = met(row, is_current=True, holder=Holder.NOBODY, has_slot=True, manner=Manner.AS_USUAL)
        if is_wanted and isinstance(answer.decision, Claimed) and answer.change is not None:
            after = committed(rest, answer.change, case.rules)
            yield move("a claim of its own lands", after, Kind.ADVERSE, change=answer.change, names_me=True)
        return
    assert row is not None
    change = recorded(row, _PHASE_BY_FLIGHT[view.me.flight])
    is_narrow = change.row.state in {TaskState.SUCCEEDED, TaskState.RETRYING}  # no decision was needed
    if is_narrow and me.is_named:
        after = committed(rest, change, case.rules)
        yield move("an outcome of its own lands", after, Kind.ADVERSE, change=change)

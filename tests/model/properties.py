"""What must hold: in every state, and of every move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from broker_worker.task import MAX_POISONINGS, TaskState
from tests.model.code import INTERRUPTIONS_LEFT, MAX_ATTEMPTS
from tests.model.moves import Move
from tests.model.state import Life, Messages, Phase, Row, State, Worker

PROPERTIES = {
    "holder": "an unfinished task is held by database or broker: if all workers died now, it would go on",
    "one holder": "it is held once: no current copy while it runs, no run under its epoch while it waits",
    "ack": "after an ack somebody else holds the task: what the delivery led to is committed",
    "effects": "a handler's effects are there once if the task succeeded, and else not at all",
    "charge": "no handler starts without a committed charge, and charges never exceed the most attempts",
    "bounds": "what is not charged ends as well: releases, and what the broker gave up",
    "once": "a copy starts at most one run: only the current one, and the claim makes it stale",
    "overlap": "two workers run the task at once only if one of them was declared dead",
    "legal": "a step is in the table of states, and an end is left by a replay only",
    "letter": "a dead task has its dead letter from the same commit",
    "record": "an attempt that did not succeed is recorded in the commit that ends it",
    "cancel": "a task that an operator cancelled neither waits again nor begins another attempt",
    "lost": "a task ends as lost only if the broker lost its message",
    "stuck": "from every state, with no further fault, the task ends and all comes to rest, whether handlers "
    "return or fail",
}


class Sight(NamedTuple):
    """What properties see of the workers."""

    hands: int
    current_hands: int
    runs: int  # that handlers are in, of a worker that is not declared dead
    current_runs: int


def sight_of(workers: Sequence[Worker]) -> Sight:
    hands = [delivery for worker in workers for delivery in worker.hands()]
    alive = [worker for worker in workers if worker.life is Life.UP]
    runs = [run for worker in alive for run in worker.runs if run.phase is Phase.RUNNING]
    return Sight(
        len(hands),
        sum(each.is_current for each in hands),
        len(runs),
        sum(run.is_current for run in runs),
    )


def broken_by_move(row: Row | None, move: Move) -> Iterator[str]:
    """Judge a move by itself."""
    yield from move.breaks
    if row is not None and row.is_terminal and move.row != row and not move.ages:
        yield "legal"


def broken_in(row: Row | None, messages: Messages, sight: Sight) -> Iterator[str]:
    """Judge a state."""
    everywhere = messages.total + sight.hands
    current = messages.current + sight.current_hands
    if not _is_held(row, messages, everywhere=everywhere, current=current):
        yield "holder"
    if row is not None:
        if row.is_running and current:
            yield "one holder"
        if row.is_waiting and sight.current_runs:
            yield "one holder"
        yield from _broken_in_row(row)
    if sight.runs > 1:
        yield "overlap"


def _broken_in_row(row: Row) -> Iterator[str]:
    if row.effects != (row.state is TaskState.SUCCEEDED):
        yield "effects"
    if row.attempt > MAX_ATTEMPTS or row.starts > row.attempt:
        yield "charge"
    is_bounded = row.interruptions < INTERRUPTIONS_LEFT and row.poisonings < MAX_POISONINGS
    if not is_bounded and not row.is_terminal:
        yield "bounds"
    if row.is_waiting and row.is_cancel_requested:
        yield "cancel"


def _is_held(row: Row | None, messages: Messages, *, everywhere: int, current: int) -> bool:
    """Whether the task would go on if every worker died now."""
    if row is None:
        return everywhere > 0 or messages.unpublished > 0
    if row.is_waiting:
        return row.has_body and (current > 0 or messages.has_lost)
    return row.is_terminal or row.has_body or everywhere > 0 or messages.has_lost


def is_at_rest(state: State) -> bool:
    """Whether the task has ended and nothing is left to do."""
    messages = state.messages
    if state.row is None or not state.row.is_terminal or messages.total or messages.unpublished:
        return False
    return all(not worker.runs and not worker.deliveries for worker in state.workers)

"""Rows take legal steps, under their fence, at their time: I9, I10, I15."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from tests.faults.facts import NEVER, TERMINAL, Facts, Life, Moment
from tests.faults.invariants.attempts import is_claim
from tests.faults.records import TaskChange
from tests.faults.verdict import Finding

# Told here once more, and not taken from the daemon: two that agree are better than one.
LEGAL: dict[str, set[str]] = {
    "": {"queued", "running", "dead", "expired"},
    "queued": {"queued", "running", "dead", "cancelled", "expired"},
    "retrying": {"retrying", "running", "dead", "cancelled", "expired"},
    "running": {"running", "queued", "retrying", "succeeded", "dead", "cancelled"},
    "succeeded": set(),
    "dead": {"queued"},
    "cancelled": set(),
    "expired": set(),
}
STILL = (
    14.0  # seconds: a worker is declared dead after 15 of an unchanged beat; one less for the commits' own
)
LATE = 5.0  # seconds between the database's look at its clock and the commit of a claim


def steps_are_legal(facts: Facts, found: Finding) -> None:
    """I9. A row takes the steps of the table, and its epoch says which.

    It grows by one at a claim, a take-over, a replay, and whenever a waiting row is sent or put off again;
    with a rescue from a dead worker as well. It never falls, and the worker changes with a claim only.
    Each change begins where the one before it ended.
    """
    for key, raw in facts.raw_lives.items():
        task = facts.tasks[key]
        for before, after in pairwise(raw):
            if _after(before) != _before(after):
                text = f"the history has a gap: {_after(before)}, then {_before(after)}"
                found.violate(text, task, after.at)
    for life in facts.lives.values():
        for change in life.changes:
            found.checked += 1
            if (wrong := _illegal(change)) is not None:
                found.violate(wrong, life.task, change.at)


def _after(change: TaskChange) -> tuple[str, int, int]:
    return change.new_state, change.new_epoch, change.new_attempt


def _before(change: TaskChange) -> tuple[str, int, int]:
    return change.old_state, change.old_epoch, change.old_attempt


def _illegal(change: TaskChange) -> str | None:
    old, new = change.old_state, change.new_state
    step = f"{old or 'new'} -> {new}"
    if not new:
        return None if old in TERMINAL else f"a row that was {old} was deleted"
    grown = change.new_epoch - change.old_epoch
    if old == new and grown == 0:
        return None if change.new_worker == change.old_worker else f"{step} changed the worker alone"
    if new not in LEGAL[old]:
        return f"{step} is no legal step"
    allowed = _growth(change)
    if grown not in allowed:
        return f"{step} changed the epoch from {change.old_epoch} to {change.new_epoch}"
    if new == "running" and not change.new_worker:
        return f"{step} without a worker"
    return None


def _growth(change: TaskChange) -> set[int]:
    """By how much a step makes the epoch grow."""
    old, new = change.old_state, change.new_state
    if new == "running" or (old == "dead" and new == "queued"):
        return {1}
    if old in {"queued", "retrying"} and new in {"queued", "retrying"}:
        return {1}
    if old == "running" and new == "retrying":
        return {0, 1}  # failed, or rescued from a dead worker
    if not old:
        return {1} if new == "queued" else {0}
    return {0}


def writes_are_fenced(facts: Facts, found: Finding) -> None:
    """I10. A run belongs to one worker, until that worker is dead by its row.

    A claim's epoch has one worker, whose own row was there before. Only what ran under a dead worker is
    taken over or rescued, and only the holder writes the end of its run. A worker is declared dead when
    its beat stood still for fifteen seconds, or by itself at its end; no clock and no name is enough.
    """
    for life in facts.lives.values():
        workers: defaultdict[int, set[str]] = defaultdict(set)
        for change, moment in zip(life.changes, life.moments, strict=True):
            found.checked += 1
            if change.new_state == "running":
                workers[change.new_epoch].add(change.new_worker)
            for wrong in _unfenced(facts, change, moment):
                found.violate(wrong, life.task, change.at)
        for epoch, names in workers.items():
            if len(names) > 1:
                found.violate(f"epoch {epoch} was run by {len(names)} workers: {sorted(names)}", life.task)
    _deaths_are_true(facts, found)


def _unfenced(facts: Facts, change: TaskChange, moment: Moment) -> list[str]:
    wrong = []
    if is_claim(change) and facts.registered.get(change.new_worker, NEVER) > moment and facts.registered:
        wrong.append(f"claimed by worker {change.new_worker}, whose row is not there")
    if change.old_state != "running" or not change.new_state:
        return wrong
    holder = change.old_worker
    is_taken = change.new_epoch != change.old_epoch
    is_foreign = bool(change.actor) and change.actor != holder and _is_end(change)
    if (is_taken or is_foreign) and not facts.is_dead(holder, moment) and facts.registered:
        verb = "taken from" if is_taken else f"ended by {change.actor} under"
        wrong.append(f"{change.old_state} -> {change.new_state}, {verb} worker {holder}, which was not dead")
    return wrong


def _is_end(change: TaskChange) -> bool:
    return change.new_state != "running"


def _deaths_are_true(facts: Facts, found: Finding) -> None:
    ended = {each.worker: each for each in facts.recording.processes if each.kind == "ended" and each.worker}
    for worker, death in facts.deaths.items():
        found.checked += 1
        moment = facts.moment(death)
        has_left = (
            worker in ended and ended[worker].exit_code == 0 if not death.actor else death.actor == worker
        )
        if has_left or death.op == "left" or death.beat_at is None:
            continue
        if moment[0] - death.beat_at < STILL:
            text = f"worker {worker} declared dead {moment[0] - death.beat_at:.1f} s after its last beat"
            found.violate(text, at=moment[0])


def times_are_kept(facts: Facts, found: Finding) -> None:
    """I15. Nothing begins before its `deliver-at` or after its `not-after`; a replay has no times.

    What is due at a time begins once for it, as its identity is one row (I3, I8).
    """
    for life in facts.lives.values():
        publishings = facts.published.get(life.task, [])
        earliest = min((each.invoke.deliver_at or 0.0 for each in publishings), default=0.0)
        nots = [each.invoke.not_after for each in publishings]
        latest = max((each for each in nots if each is not None), default=None) if None not in nots else None
        if not earliest and latest is None:
            continue
        found.checked += 1
        _check_times(facts, found, life, earliest=earliest, latest=latest)


def _check_times(facts: Facts, found: Finding, life: Life, *, earliest: float, latest: float | None) -> None:
    leeway = facts.about.leeway
    for change, moment in zip(life.changes, life.moments, strict=True):
        if change.old_state == "dead":
            return
        if not is_claim(change):
            continue
        if moment[0] < earliest - leeway:
            found.violate(f"begun {earliest - moment[0]:.3f} s before its time", life.task, change.at)
        if latest is not None and moment[0] > latest + LATE + leeway:
            found.violate(f"begun {moment[0] - latest:.3f} s after its time", life.task, change.at)

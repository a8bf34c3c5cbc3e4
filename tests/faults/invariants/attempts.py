"""Attempts are counted before they begin, and never exceed the policy: I8."""

from __future__ import annotations

from collections import Counter

from tests.faults.facts import TERMINAL, WAITING, Facts, Life, Moment
from tests.faults.records import Run, TaskChange, TaskKey
from tests.faults.verdict import Finding

MAX_INTERRUPTIONS = 50


def attempts_are_counted(facts: Facts, found: Finding) -> None:
    """I8. A claim counts one attempt more, and no claim exceeds the policy's number.

    The claim is committed before its handler begins, and lets it begin once. A release (shutdown, a
    failure of our own) gives the attempt back, at most fifty times; nothing else does, but a replay, which
    begins at none. Every attempt that ended without success has a record in `attempts`, in the same commit.
    """
    for life in facts.lives.values():
        for change in life.changes:
            found.checked += 1
            if (wrong := _miscounted(change)) is not None:
                found.violate(wrong, life.task, change.at)
            if (wrong := _unrecorded(facts, change)) is not None:
                found.violate(wrong, life.task, change.at)
    for task, runs in facts.begun.items():
        _starts_are_claimed(facts, found, task, runs)


def is_claim(change: TaskChange) -> bool:
    """Whether a change gives a task to a worker to run."""
    return change.new_state == "running" and (
        change.old_state != "running" or change.new_epoch != change.old_epoch
    )


def is_release(change: TaskChange) -> bool:
    """Whether a run was given back uncharged."""
    return change.old_state == "running" and change.new_state == "queued"


def _miscounted(change: TaskChange) -> str | None:
    before, after = change.old_attempt, change.new_attempt
    if is_claim(change):
        if after != before + 1:
            return f"a claim made attempt {after} of {before}"
        if change.max_attempts and after > change.max_attempts:
            return f"attempt {after} of at most {change.max_attempts}"
        return None
    if is_release(change):
        if after != max(before - 1, 0):
            return f"a release made attempt {after} of {before}"
        return "released more than fifty times" if change.interruptions >= MAX_INTERRUPTIONS else None
    if change.old_state == "dead" and change.new_state == "queued":
        return None if after == 0 else f"a replay began at attempt {after}"
    if change.old_state and change.new_state and after != before:
        return f"{change.old_state} -> {change.new_state} changed the attempt from {before} to {after}"
    return None


def _unrecorded(facts: Facts, change: TaskChange) -> str | None:
    """What is wrong with the record of the attempt that a change ends."""
    ends = change.old_state == "running" and (
        change.new_state in TERMINAL | WAITING or (is_claim(change) and bool(change.new_state))
    )
    if not ends:
        return None
    record = facts.attempts.get((change.key, change.old_epoch))
    if change.new_state == "succeeded":
        return f"succeeded, and has a record of failure at epoch {change.old_epoch}" if record else None
    if record is None:
        return f"no record of the attempt of epoch {change.old_epoch}, which did not succeed"
    if record.xid and change.xid and record.xid != change.xid:
        return f"the record of epoch {change.old_epoch} is not of the commit that ended the attempt"
    if record.attempt != change.old_attempt:
        return (
            f"the record of epoch {change.old_epoch} says attempt {record.attempt}, not {change.old_attempt}"
        )
    return None


def _starts_are_claimed(facts: Facts, found: Finding, task: TaskKey, runs: list[Run]) -> None:
    claims = _claims(facts, facts.life_by_task.get(task))
    begun: Counter[tuple[str, int]] = Counter()
    for run in runs:
        found.checked += 1
        name = (run.worker, run.attempt)
        begun[name] += 1
        moment = facts.moment(run)
        committed = sum(
            claimed <= (moment[0] + facts.about.leeway, moment[1])
            and change.new_attempt == run.attempt
            and run.worker in {"", change.new_worker}
            for change, claimed in claims
        )
        if committed < begun[name]:
            text = f"attempt {run.attempt} began {begun[name]} times with {committed} committed claims"
            found.violate(text, task, run.at)


def _claims(facts: Facts, life: Life | None) -> list[tuple[TaskChange, Moment]]:
    if life is None:
        return []
    return [
        (change, moment)
        for change, moment in zip(life.changes, life.moments, strict=True)
        if is_claim(change)
    ]

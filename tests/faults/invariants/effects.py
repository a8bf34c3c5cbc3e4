"""What handlers did to the world, and what each step owes it: I6, I7."""

from __future__ import annotations

from tests.faults.facts import TERMINAL, WAITING, Facts, grouped
from tests.faults.invariants.attempts import is_claim
from tests.faults.records import Child, TaskChange, TaskKey
from tests.faults.verdict import Finding


def effects_happen_once(facts: Facts, found: Finding) -> None:
    """I6. A transactional handler's writes are there once where its task succeeded, else not at all.

    They were committed by the transaction that ended the task, and all sides of all transfers sum up to
    nothing. A plain handler of a task that succeeded began at least once.
    """
    for task, row in facts.finals.items():
        handler = facts.handler(task)
        if handler.is_transactional:
            found.checked += 1
            _once(facts, found, task, has_succeeded=row.state == "succeeded")
        elif handler.is_recorded and row.state == "succeeded":
            found.checked += 1
            if not facts.begun.get(task):
                found.violate("succeeded, and its handler never began", task)
    for task in facts.effects:
        if task not in facts.finals and facts.recording.final_tasks:
            found.violate("effects of a task without a row", task)
    total = sum(each.amount for each in facts.recording.effects)
    if total:
        found.violate(f"all transfers together sum up to {total}")


def _once(facts: Facts, found: Finding, task: TaskKey, *, has_succeeded: bool) -> None:
    effects = facts.effects.get(task, [])
    transactions = {(each.xid, each.attempt) for each in effects}
    if len(transactions) != has_succeeded:
        state = "succeeded" if has_succeeded else "did not succeed"
        found.violate(f"{state}, and its effects were committed {len(transactions)} times", task)
        return
    life = facts.life_by_task.get(task)
    for effect in effects if life is not None else ():
        if effect.xid and not _has_ended_in(facts, task, effect.xid):
            found.violate(f"effects in transaction {effect.xid}, which did not end the task", task, effect.at)


def _has_ended_in(facts: Facts, task: TaskKey, xid: int) -> bool:
    ends = [each for each in facts.life_by_task[task].changes if each.new_state == "succeeded"]
    return any(each.xid in {xid, 0} for each in ends)


def what_is_owed_leaves_with_its_step(facts: Facts, found: Finding) -> None:
    """I7. Whatever a step owes is a row of the outbox in the commit of that step, and arrives.

    A task that has to wait owes its next copy, one that is dead its letter, one that ended its reply. Each
    epoch has one copy: of two, each would be the current one. The tasks and events that arrive are those
    that the successful attempts of their parents sent: none is missing, and none is of an attempt that
    was rolled back.
    """
    for life in facts.lives.values():
        for change in life.changes:
            if change.xid and _is_step(change):
                found.checked += 1
                for missing in _owed(facts, change):
                    text = (
                        f"{change.old_state or 'new'} -> {change.new_state} owes {missing} in the same commit"
                    )
                    found.violate(text, life.task, change.at)
    _one_copy_an_epoch(facts, found)
    if facts.about.has_quiet_end:
        _children_arrive(facts, found)
        _replies_arrive(facts, found)


def _one_copy_an_epoch(facts: Facts, found: Finding) -> None:
    copies = [each for each in facts.recording.history_outbox if each.op == "insert" and each.kind == "copy"]
    for (key, epoch), same in grouped(copies, lambda each: (each.key, each.epoch)).items():
        found.checked += 1
        if key and len(same) > 1:
            text = f"{len(same)} copies of epoch {epoch} were owed"
            found.violate(text, facts.tasks.get(key), same[1].at)


def _is_step(change: TaskChange) -> bool:
    return (change.old_state, change.old_epoch) != (change.new_state, change.new_epoch)


def _owed(facts: Facts, change: TaskChange) -> list[str]:
    inserted = facts.outbox_inserts.get((change.key, change.xid), [])
    kinds = {each.kind for each in inserted}
    missing = []
    if change.new_state in WAITING:
        if not any(each.kind == "copy" and each.epoch == change.new_epoch for each in inserted):
            missing.append(f"a copy of epoch {change.new_epoch}")
        if not change.new_body:
            missing.append("its body")
    if change.new_state == "dead":
        missing += ["its dead letter"] if (change.key, change.xid) not in facts.letters_by_commit else []
        missing += ["the publish of its dead letter"] if "dead_letter" not in kinds else []
    if change.new_state in TERMINAL and change.reply_to and "reply" not in kinds:
        missing.append("its reply")
    return missing


def _children_arrive(facts: Facts, found: Finding) -> None:
    arrived: set[object] = {
        (each.child_id, "event") for each in facts.recording.received if each.kind == "event"
    }
    arrived |= set(facts.finals)
    committed = {
        _name(child): parent
        for parent, children in facts.children.items()
        for child in children
        if _was_committed(facts, parent, child)
    }
    for name, parent in committed.items():
        found.checked += 1
        if name not in arrived and _can_arrive(facts, name):
            found.violate(f"its child {name} never arrived", parent)
    ghosts = [
        (parent, child)
        for parent, children in facts.children.items()
        for child in children
        if _name(child) in arrived and _name(child) not in committed
    ]
    for parent, child in ghosts:
        text = f"a child of attempt {child.attempt}, which was not committed, arrived: {_name(child)}"
        found.violate(text, parent)


def _was_committed(facts: Facts, parent: TaskKey, child: Child) -> bool:
    """Whether the run that sent it is the one that succeeded: a release gives an attempt's number back."""
    life = facts.life_by_task.get(parent)
    last = life.changes[-1] if life is not None else None
    if life is None or last is None or last.new_state != "succeeded" or last.new_attempt != child.attempt:
        return False
    claimed = [moment for change, moment in zip(life.changes, life.moments, strict=True) if is_claim(change)]
    leeway = facts.about.leeway
    return bool(claimed) and claimed[-1] <= (child.at + leeway, facts.moment(child)[1])


def _name(child: Child) -> object:
    if child.kind == "event":
        return (child.child_id, "event")
    return TaskKey(child.child_queue, child.child_name, child.child_id)


def _can_arrive(facts: Facts, name: object) -> bool:
    """Whether anybody listened: a recording that is not whole may have no witness of events."""
    return isinstance(name, TaskKey) or facts.about.is_whole or bool(facts.recording.received)


def _replies_arrive(facts: Facts, found: Finding) -> None:
    answered = {(each.name, each.id) for each in facts.recording.received if each.kind == "reply"}
    if not answered and not facts.about.is_whole:
        return
    for life in facts.lives.values():
        last = life.changes[-1]
        if last.reply_to and last.new_state in TERMINAL:
            found.checked += 1
            if (life.task.name, life.task.id) not in answered:
                found.violate(f"its reply to {last.reply_to} never arrived", life.task)

"""What was confirmed ends, once, and nothing else is there: I1, I2, I3, I11."""

from __future__ import annotations

from collections import Counter

from tests.faults.facts import TERMINAL, Facts, Publishing
from tests.faults.records import Publish, TaskKey
from tests.faults.verdict import Finding


def nothing_is_lost(facts: Facts, found: Finding) -> None:
    """I1. What the broker confirmed to its publisher has ended when all is quiet, and a row says how.

    A message that is no task, or whose identity another one has, ends as a dead letter instead.
    """
    if not facts.about.has_quiet_end:
        return
    kept = _Kept(facts)
    for publishing in facts.publishings:
        if publishing.kind != "ok":
            continue
        found.checked += 1
        if (wrong := _lost(facts, publishing, kept)) is not None:
            found.violate(f"confirmed, and {wrong}", publishing.task, publishing.answered_at)


class _Kept:
    """What is there at the end, but for the rows: dead letters, and tasks whose id no publisher gave."""

    def __init__(self, facts: Facts) -> None:
        letters = facts.recording.final_letters
        self._bodies = {each.body for each in letters}
        self._names = {(each.queue, each.id) for each in letters if each.id}
        self._stamped = Counter(
            row.digest for task, row in facts.finals.items() if task not in facts.published
        )

    def has_body(self, publish: Publish) -> bool:
        return publish.body in self._bodies

    def has_letter(self, publish: Publish) -> bool:
        return self.has_body(publish) or (publish.queue, publish.id) in self._names

    def take_stamped(self, publish: Publish) -> bool:
        """One task stands for one message."""
        self._stamped[publish.digest] -= 1
        return self._stamped[publish.digest] >= 0


def _lost(facts: Facts, publishing: Publishing, kept: _Kept) -> str | None:
    """What is wrong with the end of a publish."""
    invoke, row = publishing.invoke, facts.finals.get(publishing.task)
    if not invoke.id and invoke.expects != "letter":
        is_kept = kept.take_stamped(invoke) or kept.has_letter(invoke)
        return None if is_kept else "no task has its body, nor a dead letter"
    if row is None:
        return None if kept.has_letter(invoke) else "there is no row and no dead letter"
    if row.digest and invoke.digest and row.digest != invoke.digest:
        return None if kept.has_body(invoke) else "its identity is taken, and no dead letter has it"
    return None if row.state in TERMINAL else f"still {row.state} when all is quiet"


def nothing_comes_from_nowhere(facts: Facts, found: Finding) -> None:
    """I2. Every task and every dead letter is of a message that somebody tried to publish, body and all."""
    digests = {each.invoke.digest for each in facts.publishings}
    bodies = {each.invoke.body for each in facts.publishings}
    children = {
        TaskKey(child.child_queue, child.child_name, child.child_id) for child in facts.recording.children
    }
    by_place = {(task.queue, task.id): group for task, group in facts.published.items()}
    for task, row in facts.finals.items():
        found.checked += 1
        asked = facts.published.get(task) or by_place.get((task.queue, task.id))
        if task in children:
            continue
        if asked is None and row.digest not in digests:
            found.violate("a task that nobody has published", task)
        elif asked is not None and row.digest and not _has_digest(asked, row.digest):
            found.violate("a task whose body nobody has published under this identity", task)
    ids = {(task.queue, task.id) for task in [*facts.published, *facts.finals]}
    for letter in facts.recording.final_letters:
        found.checked += 1
        if letter.body not in bodies and (letter.queue, letter.id) not in ids:
            task = TaskKey(letter.queue, letter.name, letter.id)
            found.violate(f"dead letter {letter.letter} of a message that nobody has published", task)


def a_task_ends_once(facts: Facts, found: Finding) -> None:
    """I3. A row comes to an end once, and leaves it only by a replay; then it may end once more."""
    for life in facts.lives.values():
        ends = 0
        for change in life.changes:
            if change.new_state in TERMINAL:
                found.checked += 1
                ends += 1
                if ends > 1:
                    text = (
                        f"ended again, {change.old_state} -> {change.new_state}, at epoch {change.new_epoch}"
                    )
                    found.violate(text, life.task, change.at)
            else:
                ends = 0


def all_is_accounted_for(facts: Facts, found: Finding) -> None:
    """I11. When all is quiet nothing is left: no row on its way, no outbox row, no message in a queue.

    The dead tasks are those with an open dead letter, each letter has been published, and what the
    history says last of a row is what the row says.
    """
    if not facts.about.has_quiet_end:
        return
    _nothing_on_its_way(facts, found)
    _dead_have_letters(facts, found)
    _letters_are_published(facts, found)
    _history_is_whole(facts, found)


def _nothing_on_its_way(facts: Facts, found: Finding) -> None:
    for task, row in facts.finals.items():
        found.checked += 1
        if row.state not in TERMINAL:
            found.violate(f"still {row.state} when all is quiet", task)
    for owed in facts.recording.final_outbox:
        found.violate(f"outbox row {owed.number} ({owed.kind}) is left", facts.tasks.get(owed.key))
    last = {each.amqp_queue: each for each in sorted(facts.recording.broker, key=lambda each: each.at)}
    ours = [each for name, each in last.items() if name.startswith(f"{facts.about.prefix}.")]
    for sample in ours:  # and not those of witnesses
        found.checked += 1
        if sample.ready or sample.unacked:
            text = f"{sample.amqp_queue} still holds {sample.ready} ready and {sample.unacked} unacked"
            found.violate(text, at=sample.at)


def _dead_have_letters(facts: Facts, found: Finding) -> None:
    open_by_key = Counter(
        each.key
        for each in facts.recording.final_letters
        if not each.resolution and each.reason != "conflict"
    )
    discarded = {each.key for each in facts.recording.final_letters if each.resolution == "discarded"}
    rows = {row.key: row for row in facts.recording.final_tasks}
    for row in rows.values():
        if row.state == "dead" and not open_by_key[row.key] and row.key not in discarded:
            found.violate(f"dead ({row.reason}) without a dead letter", facts.tasks[row.key])
    for key in open_by_key:
        if key and (key not in rows or rows[key].state != "dead"):
            state = rows[key].state if key in rows else "gone"
            found.violate(f"an open dead letter of a task that is {state}", facts.tasks.get(key))


def _letters_are_published(facts: Facts, found: Finding) -> None:
    received = {each.letter for each in facts.recording.received if each.kind == "letter"}
    if not received and not facts.about.is_whole:
        return
    owed = {each.letter for each in facts.recording.history_outbox if each.kind == "dead_letter"}
    for letter in owed - received:
        found.violate(f"dead letter {letter} never reached the dead-letter exchange")


def _history_is_whole(facts: Facts, found: Finding) -> None:
    for row in facts.recording.final_tasks:
        changes = facts.raw_lives.get(row.key)
        if changes is None:
            if facts.recording.history:
                found.violate("a row without a history", facts.tasks[row.key])
            continue
        last = changes[-1]
        if (last.new_state, last.new_epoch) != (row.state, row.epoch):
            told = f"{last.new_state} at epoch {last.new_epoch}"
            text = f"the row says {row.state} at epoch {row.epoch}, its history {told}"
            found.violate(text, facts.tasks[row.key])


def _has_digest(asked: list[Publishing], digest: str) -> bool:
    return any(each.invoke.digest in {digest, ""} for each in asked)

"""What the daemon publishes is the publisher's message, and nothing of the broker's: I16."""

from __future__ import annotations

from collections import Counter

from tests.faults.facts import Facts
from tests.faults.records import TaskKey, Wire
from tests.faults.verdict import Finding

ROUTING = frozenset({"cc", "bcc"})


def copies_are_clean(facts: Facts, found: Finding) -> None:
    """I16. A copy carries no header of the broker (`x-*`, by which it drops cycles) nor of routing.

    Its body and media type are the publisher's. Each publish has a message id of its own: by it a client
    library tells which of two was returned.
    """
    used: Counter[str] = Counter()
    rows = {(row.queue, row.id, row.name): row.digest for row in facts.recording.final_tasks}
    for sent in facts.wire.sent:
        wire = sent.wire
        found.checked += 1
        task = TaskKey(wire.routing_key, wire.name, wire.id)
        foreign = [name for name in wire.headers if name.startswith("x-") or name.lower() in ROUTING]
        if foreign:
            found.violate(f"published with headers of the broker: {foreign}", task, wire.at)
        if wire.message_id:
            used[wire.message_id] += 1
            if used[wire.message_id] == 2:
                found.violate(f"message id {wire.message_id} was published twice", task, wire.at)
        digest = rows.get((wire.routing_key, wire.id, wire.name))
        if _is_copy(wire) and digest and wire.digest and digest != wire.digest:
            found.violate("a copy whose body is not the publisher's", task, wire.at)


def _is_copy(wire: Wire) -> bool:
    return bool(wire.id) and not wire.letter and not wire.event

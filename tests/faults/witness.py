"""What all connections are seen to say, written down in one order; and the rules that wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.records import Wire, line

if TYPE_CHECKING:
    from tests.faults.proxy import Carrier


@dataclass(slots=True)
class Trigger:
    """The nth event of a kind from now on; or from the first event of another kind on."""

    kind: str
    nth: int = 1
    after: str = ""  # a kind of event that has to be seen first
    gates: frozenset[str] = frozenset()  # where; empty: anywhere

    def is_met(self, record: Wire, gate: str) -> bool:
        """Count an event."""
        if self.gates and gate not in self.gates:
            return False
        if self.after:
            if record.kind == self.after:
                self.after = ""
            return False
        self.nth -= record.kind == self.kind
        return self.nth <= 0


@dataclass(slots=True, eq=False)
class Rule:
    """What is done when a trigger is met: at once, before the frame is carried on."""

    trigger: Trigger
    act: Callable[[Carrier], bool]  # says whether the frame is carried on


@dataclass
class Witness:
    """The one observer."""

    file: Path
    rules: list[Rule] = field(default_factory=list)
    seen: int = 0

    def __post_init__(self) -> None:
        self._log = self.file.open("w", buffering=1 << 16)

    def see(self, record: Wire, carrier: Carrier) -> bool:
        """Write down an event; return whether it is to be carried on."""
        self.seen += 1
        record.at, record.order = time.time(), self.seen
        record.connection, record.process = carrier.name, carrier.process
        for rule in [rule for rule in self.rules if rule.trigger.is_met(record, carrier.gate.name)]:
            self.rules.remove(rule)
            record.is_passed &= rule.act(carrier)
        if carrier.gate.is_recorded:
            self._log.write(line(record) + "\n")
        return record.is_passed

    def flush(self) -> None:
        """Have all of it in the file."""
        self._log.flush()

    def close(self) -> None:
        self._log.close()

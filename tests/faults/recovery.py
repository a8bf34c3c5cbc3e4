"""How long it took after each fault until the daemons that it hit worked again. Pure.

A daemon works again when a task that it ran has succeeded. While another fault hits it, its time does not
count: nobody can recover from what goes on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.faults.records import Fault, Recording

LONGEST = 600.0  # seconds; who did nothing for so long had nothing to do, or is found by the checker
INNOCENT = frozenset({"publisher"})  # targets that are no daemon


@dataclass(frozen=True, slots=True)
class Recovered:
    """What one fault cost."""

    fault: Fault
    seconds: float


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when a fault hit a place; "" is all of them."""

    begun: float
    healed: float
    place: str


def recoveries(recording: Recording) -> list[Recovered]:
    """Every fault that was healed while there was work for whom it hit, and the slowest of these."""
    successes = successes_by_place(recording)
    begun = {each.number: each.at for each in recording.faults if each.phase == "begun"}
    healed = [each for each in recording.faults if each.phase == "healed" and each.number in begun]
    spans = [Span(begun[each.number], each.at, place_of(each.target)) for each in healed]
    last = max((each.at for each in recording.publisher if each.kind == "invoke"), default=0.0)
    found = []
    for fault, span in zip(healed, spans, strict=True):
        if fault.target in INNOCENT or fault.at >= last:
            continue
        places = [span.place] if span.place else list(successes)
        waited = [_waited(fault.at, successes.get(place, ()), place, spans) for place in places]
        known = [seconds for seconds in waited if seconds is not None]
        if known:
            found.append(Recovered(fault, max(known)))
    return found


def _waited(at: float, successes: Sequence[float], place: str, spans: Sequence[Span]) -> float | None:
    """The seconds from `at` to the next success in which nothing was broken there; None: there was none."""
    index = bisect_right(successes, at)
    if index == len(successes):
        return None
    until = successes[index]
    if until - at > LONGEST:
        return None
    broken = sorted(
        (max(span.begun, at), min(span.healed, until))
        for span in spans
        if span.place in {"", place} and span.begun < until and span.healed > at
    )
    seconds, free_from = until - at, at
    for begun, healed in broken:
        if healed > free_from:
            seconds -= healed - max(begun, free_from)
            free_from = healed
    return seconds


def successes_by_place(recording: Recording) -> dict[str, list[float]]:
    """When tasks succeeded, by the place of the daemon that ran them."""
    place_by_worker: Mapping[str, str] = {
        each.worker: place_of(each.process) for each in recording.processes if each.worker
    }
    found: dict[str, list[float]] = {}
    for change in recording.history:
        if change.new_state == "succeeded" and change.old_state == "running":
            place = place_by_worker.get(change.new_worker, "")
            found.setdefault(place, []).append(change.committed_at or change.at)
    found.pop("", None)
    return {place: sorted(times) for place, times in found.items()}


def place_of(process: str) -> str:
    """The place of a process: `worker-2.3` is the third in `worker-2`. Nothing where it is no daemon."""
    return process.rpartition(".")[0] if process.startswith("worker-") else ""


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which so many are; None where there is none."""
    ordered = sorted(values)
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 2) if ordered else None

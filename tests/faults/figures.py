"""What a run shows beside right and wrong: how much there was, and how long things took."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.faults.facts import Facts
from tests.faults.invariants.service import recoveries, samples_by_process
from tests.faults.records import Process

SETTLED_AFTER = 300.0  # seconds until a process has what it needs: a slope from before is no leak
SHORTEST = 600.0  # seconds of samples that a slope needs


def figures(facts: Facts) -> dict[str, Any]:
    """Counts and times of one recording."""
    outcomes = Counter(each.kind for each in facts.publishings)
    states = Counter(row.state for row in facts.recording.final_tasks)
    times = sorted(waited for _, waited in recoveries(facts))
    return {
        "messages": len(facts.publishings),
        "publishes": dict(sorted(outcomes.items())),
        "recovered": _recovered(facts),
        "states": dict(sorted(states.items())),
        "faults": dict(
            sorted(Counter(each.kind for each in facts.recording.faults if each.phase == "begun").items())
        ),
        "repeated_runs": _repeated(facts),
        "recoveries": len(times),
        "recovery_p50_s": _percentile(times, 0.5),
        "recovery_p95_s": _percentile(times, 0.95),
        "recovery_max_s": _percentile(times, 1.0),
        "drained_after_s": round(max(facts.about.ended_at - facts.about.healed_at, 0.0), 1),
        "unknown_commits": _unknown_commits(facts),
        "memory_mib_per_hour": _memory_slope(facts),
    }


def _unknown_commits(facts: Facts) -> int:
    """Connections that ended with a commit whose reply had not passed."""
    waiting: set[str] = set()
    unknown = 0
    for wire in sorted(facts.recording.wire, key=lambda each: (each.at, each.order)):
        match wire.kind:
            case "commit":
                waiting.add(wire.connection)
            case "committed" if wire.is_passed:
                waiting.discard(wire.connection)
            case "lost":
                unknown += wire.connection in waiting
            case _:
                pass
    return unknown


def _recovered(facts: Facts) -> int:
    """Publishes of which nobody could say whether they arrived, and that did."""
    unknown = {each.task for each in facts.publishings if each.kind == "info"}
    sure = {each.task for each in facts.publishings if each.kind == "ok"}
    return sum(task in facts.finals for task in unknown - sure)


def _repeated(facts: Facts) -> int:
    """Count handlers that began again for an attempt: at least once, made visible."""
    return sum(
        count - 1 for runs in facts.begun.values() for count in Counter(run.attempt for run in runs).values()
    )


def _percentile(times: list[float], share: float) -> float | None:
    if not times:
        return None
    return round(times[min(int(len(times) * share), len(times) - 1)], 3)


def _memory_slope(facts: Facts) -> float | None:
    """The steepest of the processes that lived long enough, in MiB an hour."""
    slopes = [_slope(samples) for samples in samples_by_process(facts).values()]
    known = [slope for slope in slopes if slope is not None]
    return round(max(known), 3) if known else None


def _slope(samples: list[Process]) -> float | None:
    settled = [each for each in samples if each.at - samples[0].at >= SETTLED_AFTER]
    if not settled or settled[-1].at - settled[0].at < SHORTEST:
        return None
    middle = sum(each.at for each in settled) / len(settled)
    mean = sum(each.rss for each in settled) / len(settled)
    above = sum((each.at - middle) * (each.rss - mean) for each in settled)
    below = sum((each.at - middle) ** 2 for each in settled)
    return above / below * 3600 / 2**20

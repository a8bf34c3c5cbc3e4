"""What a run comes to: figures for the file, and a table for people."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.faults.recovery import percentile, recoveries
from tests.faults.runner import Plan, Ran
from tests.faults.schedule import KINDS

RECOVERY_TARGET = 10.0  # seconds, from a heal to the first success, of 95 in 100
MEMORY_TARGET = 1.0  # MiB an hour
FAULTS_TARGET, KINDS_TARGET, EACH_TARGET = 500, 20, 10


@dataclass(frozen=True, slots=True)
class Results:
    """The facts as they are written, and whether all is as promised."""

    facts: dict[str, Any]
    is_met: bool


def summarise(plan: Plan, ran: Ran, *, minutes: float, simulation: dict[str, Any] | None) -> Results:
    """Put a run's figures together."""
    about, figures = ran.recording.about, ran.verdict.figures
    seconds_by_kind: dict[str, list[float]] = defaultdict(list)
    for each in recoveries(ran.recording):
        seconds_by_kind[each.fault.kind].append(each.seconds)
    every = [value for values in seconds_by_kind.values() for value in values]
    memory = figures["memory_mib_per_hour"]
    p95 = percentile(every, 0.95)
    has_failing_seed = bool(simulation and (simulation.get("exit_code") or simulation.get("error")))
    targets = {
        "no violation": ran.verdict.is_clean,
        "became quiet": about.has_quiet_end,
        "recovery p95 at most 10 s": p95 is None or p95 <= RECOVERY_TARGET,
        "memory slope under 1 MiB/h": memory is None or memory < MEMORY_TARGET,
        "no failing seed": not has_failing_seed,
    }
    facts = {
        "at": datetime.fromtimestamp(about.began_at, UTC).isoformat(timespec="seconds"),
        "seed": plan.seed,
        "minutes": minutes,
        "daemons": plan.daemons,
        "messages": plan.messages,
        "figures": figures,
        "faults": sum(ran.done.values()),
        "faults_by_kind": {kind.name: ran.done.get(kind.name, 0) for kind in KINDS},
        "faults_not_done": ran.not_done,
        "violations": {
            code: {"checked": found.checked, "violations": len(found.violations)}
            for code, found in ran.verdict.findings.items()
        },
        "recovery_s": {
            "count": len(every),
            **{name: percentile(every, share) for name, share in SHARES.items()},
            "p95_by_kind": {
                kind: percentile(values, 0.95) for kind, values in sorted(seconds_by_kind.items())
            },
        },
        "memory_mib_per_hour": memory,
        "drained_after_s": figures["drained_after_s"],
        "simulation": simulation,
        "targets": targets,
    }
    return Results(facts, all(targets.values()))


SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}


def show(results: Results) -> str:
    """The same for a terminal."""
    facts = results.facts
    recovery = facts["recovery_s"]
    kinds = facts["faults_by_kind"]
    not_done = sum(facts["faults_not_done"].values())
    violations = ", ".join(f"{code} {found['violations']}" for code, found in facts["violations"].items())
    lines = [
        f"seed {facts['seed']}, {facts['minutes']:g} minutes: {facts['messages']} messages",
        f"{facts['faults']} faults of {sum(map(bool, kinds.values()))} kinds; not done: {not_done}",
        "  " + ", ".join(f"{kind} {count}" for kind, count in kinds.items()),
        f"recovery: p50 {recovery['p50']} s, p95 {recovery['p95']} s, max {recovery['max']} s",
        f"memory: {facts['memory_mib_per_hour']} MiB/h; drained after {facts['drained_after_s']} s",
        f"violations: {violations}",
        *(f"  {'met   ' if is_met else 'MISSED'} {target}" for target, is_met in facts["targets"].items()),
    ]
    return "\n".join(lines) + "\n"

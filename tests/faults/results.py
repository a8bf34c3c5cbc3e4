"""What a run comes to: figures for the file, and tables for people.

`python -m tests.faults.results` writes those of docs/reliability.md anew, from the last run.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.records import Recording
from tests.faults.recovery import percentile, recoveries
from tests.faults.runner import Plan, Ran
from tests.faults.schedule import KINDS
from tests.faults.workload import INNOCENT

RECOVERY_TARGET = 10.0  # seconds, from a heal to the first success, of 95 in 100
MEMORY_TARGET = 1.0  # MiB an hour
FAULTS_TARGET, KINDS_TARGET, EACH_TARGET = 500, 20, 10  # of a run of an hour


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
        "no innocent task dead": not innocent_deaths(ran.recording),
        "became quiet": about.has_quiet_end,
        "recovery p95 at most 10 s": p95 is None or p95 <= RECOVERY_TARGET,
        "memory slope under 1 MiB/h": memory is None or memory < MEMORY_TARGET,
        "no failing seed": not has_failing_seed,
    }
    if minutes >= 60:
        often = sum(count >= EACH_TARGET for count in ran.done.values())
        targets["500 faults or more"] = sum(ran.done.values()) >= FAULTS_TARGET
        targets["20 kinds or more, each 10 times or more"] = often >= KINDS_TARGET
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
        "innocent_deaths": innocent_deaths(ran.recording),
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


def may_end(id_: str) -> tuple[str, ...]:
    """How a task without a fault of its own may end: one that is not to begin late may be too late."""
    return ("succeeded", "expired") if id_.startswith("hasty") else ("succeeded",)


def innocent_deaths(recording: Recording) -> list[str]:
    """Tasks that nothing was wrong with, and that did not succeed: what no invariant forbids."""
    return [
        f"{row.id}: {row.state} {row.reason}"
        for row in recording.final_tasks
        if row.name in INNOCENT and not row.id.startswith("hostile") and row.state not in may_end(row.id)
    ]


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


LATEST = Path(__file__).parent / "results" / "latest.json"
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
COLUMNS = 3  # kinds in a line
BEGIN, END = "<!-- last run -->\n", "<!-- end of the last run -->\n"


def document() -> None:
    """Put the tables of the last run into the documentation."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    lines = "\n".join(tables(json.loads(LATEST.read_text())))
    PAGE.write_text(f"{before}{BEGIN}\n{lines}\n\n{END}{rest.partition(END)[2]}")


def tables(facts: dict[str, Any]) -> Iterator[str]:
    """The last run, for the documentation."""
    yield from ("| | |", "|---|---|")
    for name, value in rows(facts).items():
        yield f"| {name} | {value} |"
    yield ""
    head = "fault | done | recovery p95, s | "
    yield from (f"| {head * COLUMNS}".rstrip(), f"|{'---|' * 3 * COLUMNS}")
    p95_by_kind = facts["recovery_s"]["p95_by_kind"]
    cells = [
        f"`{kind}` | {count} | {p95_by_kind.get(kind, '')} |"
        for kind, count in facts["faults_by_kind"].items()
    ]
    for at in range(0, len(cells), COLUMNS):
        yield f"| {' '.join(cells[at : at + COLUMNS])}"


def rows(facts: dict[str, Any]) -> dict[str, str]:
    """The figures, by what they are."""
    figures, recovery, found = facts["figures"], facts["recovery_s"], facts["violations"]
    kinds = sum(map(bool, facts["faults_by_kind"].values()))
    checked = sum(each["checked"] for each in found.values())
    broken = [f"{code} {each['violations']} times" for code, each in found.items() if each["violations"]]
    missed = [target for target, is_met in facts["targets"].items() if not is_met]
    return {
        "begun, seed, minutes": f"{facts['at']}, {facts['seed']}, {facts['minutes']:g}",
        "publishes": listed(figures["publishes"]),
        "tasks in the end": listed(figures["states"]),
        "faults": f"{facts['faults']} of {kinds} kinds; not done: {sum(facts['faults_not_done'].values())}",
        "violations": f"{', '.join(broken) or 'none'} in {checked} checks",
        "recovery, s": ", ".join(f"{name} {recovery[name]}" for name in SHARES),
        "quiet after the last fault, s": str(facts["drained_after_s"]),
        "memory, MiB an hour": str(facts["memory_mib_per_hour"] or "the run was too short"),
        "simulated seeds": simulated(facts["simulation"]),
        "targets that were missed": ", ".join(missed) or "none",
    }


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def simulated(simulation: dict[str, Any] | None) -> str:
    """How many seeds, and how many of them failed."""
    if simulation is None:
        return "none"
    if "error" in simulation:
        return str(simulation["error"])
    return f"{simulation['seeds']}, {len(simulation['failing'])} failed"


if __name__ == "__main__":
    document()

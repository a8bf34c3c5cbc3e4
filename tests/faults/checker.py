"""The checker: one pure program over the files of a run, which says whether the promises were kept.

It judges from what was seen by others than the daemon: a publisher of its own, both wires, triggers in the
database, the broker's depths, a log of what was broken. It shares no code with the daemon, so that one
misunderstanding can't hide behind the other.

| code | invariant |
|---|---|
| I1 | what the broker confirmed to a publisher ends |
| I2 | nothing is there that nobody published |
| I3 | a task ends once |
| I4 | no ack before the commit that holds what stands for the message |
| I5 | no outbox row is deleted before the broker confirmed it |
| I6 | a transactional handler's effects are there once, in the commit that ended its task, or not at all |
| I7 | what a step owes is in the commit of the step, and arrives |
| I8 | attempts are counted before they begin, and never exceed the policy |
| I9 | rows take legal steps, and their epochs grow as the steps say |
| I10 | a run has one holder until that is dead by its row |
| I11 | when all is quiet nothing is left on its way, and the dead are those with a letter |
| I12 | after a fault work goes on within its bound, and no daemon gives up |
| I13 | no process grows |
| I14 | logs are free of signs of trouble and of secrets |
| I15 | nothing begins before or after its time |
| I16 | what is published is the publisher's, without headers of the broker |

What each means exactly stands with the function that looks for what breaks it, in `invariants/`.

`python -m tests.faults.checker DIR` prints the counts, and the timelines of the first that break an
invariant, and ends with 1 if there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.faults.facts import Facts
from tests.faults.figures import figures
from tests.faults.invariants.acks import no_ack_before_the_commit, nothing_is_forgotten_before_its_confirm
from tests.faults.invariants.attempts import attempts_are_counted
from tests.faults.invariants.conservation import (
    a_task_ends_once,
    all_is_accounted_for,
    nothing_comes_from_nowhere,
    nothing_is_lost,
)
from tests.faults.invariants.copies import copies_are_clean
from tests.faults.invariants.effects import effects_happen_once, what_is_owed_leaves_with_its_step
from tests.faults.invariants.history import steps_are_legal, times_are_kept, writes_are_fenced
from tests.faults.invariants.service import it_recovers, it_stays_small, logs_are_clean
from tests.faults.records import Recording
from tests.faults.timelines import timeline
from tests.faults.verdict import Finding, Invariant, Verdict

ENDS = ("publisher", "final_tasks")

INVARIANTS = (
    Invariant("I1", "nothing is lost", nothing_is_lost, ENDS),
    Invariant("I2", "nothing comes from nowhere", nothing_comes_from_nowhere, ENDS),
    Invariant("I3", "a task ends once", a_task_ends_once, ("history",)),
    Invariant("I4", "no ack before the commit", no_ack_before_the_commit, ("wire", "history")),
    Invariant(
        "I5",
        "no deletion before the confirm",
        nothing_is_forgotten_before_its_confirm,
        ("wire", "history_outbox"),
    ),
    Invariant("I6", "effects once", effects_happen_once, ("final_tasks",)),
    Invariant("I7", "what is owed leaves with its step", what_is_owed_leaves_with_its_step, ("history",)),
    Invariant("I8", "attempts are counted first", attempts_are_counted, ("history",)),
    Invariant("I9", "legal steps", steps_are_legal, ("history",)),
    Invariant("I10", "one holder", writes_are_fenced, ("history",)),
    Invariant("I11", "all is accounted for", all_is_accounted_for, ("final_tasks",)),
    Invariant("I12", "it recovers", it_recovers, ("faults",)),
    Invariant("I13", "it stays small", it_stays_small, ("processes",)),
    Invariant("I14", "clean logs", logs_are_clean, ("logs",)),
    Invariant("I15", "times are kept", times_are_kept, ("publisher", "history")),
    Invariant("I16", "clean copies", copies_are_clean, ("wire",)),
)


def check(recording: Recording) -> Verdict:
    """Judge a recording. Pure: the same files, in whatever order their lines come, give the same verdict."""
    facts = Facts(recording)
    findings, unjudged = {}, []
    for invariant in INVARIANTS:
        is_there = all(getattr(recording, name) for name in invariant.files)
        if not is_there and not recording.about.is_whole:
            unjudged.append(invariant.code)
            continue
        finding = Finding()
        invariant.check(facts, finding)
        findings[invariant.code] = finding
    return Verdict(findings, tuple(unjudged), figures(facts))


def report(recording: Recording, verdict: Verdict) -> Iterator[str]:
    """What the program prints."""
    facts = Facts(recording)
    names = {invariant.code: invariant.name for invariant in INVARIANTS}
    for code, finding in verdict.findings.items():
        count = len(finding.violations)
        yield f"{code:4} {names[code]:36} {finding.checked:9} checked  {count or 'no':>6} violations"
    for code in verdict.unjudged:
        yield f"{code:4} {names[code]:36} not judged: a file of it is empty"
    for name, figure in verdict.figures.items():
        yield f"     {name:36} {figure}"
    for code in verdict.violated:
        for violation in verdict.witnesses(code):
            yield ""
            who = f" {'/'.join(violation.task)}" if violation.task else ""
            when = f"(at {violation.at - facts.about.began_at:.6f})" if violation.at else ""
            yield f"{code} {names[code]}:{who} {violation.text} {when}"
            yield from timeline(facts, violation.task) if violation.task else ()


def main(directory: str) -> int:
    """Check the run in `directory`; the exit code."""
    recording = Recording.load(Path(directory))
    verdict = check(recording)
    print(f"seed {recording.about.seed}, {recording.about.source}")  # noqa: T201 - a command
    for line in report(recording, verdict):
        print(line)  # noqa: T201 - a command
    return 0 if verdict.is_clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

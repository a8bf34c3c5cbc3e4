"""The service itself comes back, stays small, and says nothing that it should not: I12, I13, I14."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from tests.faults.facts import TERMINAL, Facts
from tests.faults.invariants.attempts import is_claim
from tests.faults.records import Fault, Process
from tests.faults.verdict import Finding

WARM = 30.0  # seconds that a process takes to open what it needs
SHORTEST = 120.0  # seconds of samples after that, which tell a leak from a pool that fills
GROWTH = 1.05  # of its descriptors, threads and connections, over its life
SLACK = 8  # of them, whatever their number
MEMORY_SLACK = 32 * 2**20  # bytes: caches that fill, arenas that are kept
LONGEST_IDLE = 5.0  # seconds in a transaction without a statement
FORBIDDEN = (
    "unknown delivery tag",
    "Task exception was never retrieved",
    "Future exception was never retrieved",
    "Task was destroyed but it is pending",
    "was never awaited",
    "illegal step of task",
)


def it_recovers(facts: Facts, found: Finding) -> None:
    """I12. Some seconds after the last fault is healed work goes on, if there is any; and no daemon gives up.

    Judged where nothing else was broken meanwhile, and where a message waited that was confirmed before
    the heal and that no worker had taken. The bound is the fault's own, else the run's.
    """
    for fault, waited in recoveries(facts):
        found.checked += 1
        bound = fault.bound if fault.bound is not None else facts.about.recovery
        if waited > bound:
            text = f"after {fault.kind} of {fault.target or 'all'} nothing was done for {waited:.1f} s"
            found.violate(text, at=fault.at)
    dead = set(facts.deaths)
    for each in facts.recording.processes:
        if each.kind != "ended":
            continue
        found.checked += 1
        was_told = each.is_expected or (each.exit_code == 1 and each.worker in dead)
        if not was_told:
            found.violate(f"{each.process} ended by itself with {each.exit_code}", at=each.at)


def recoveries(facts: Facts) -> list[tuple[Fault, float]]:
    """Heals after which work had to go on, and how long that took."""
    progress, first_taken = _progress(facts)
    asked = _asked(facts, first_taken)
    broken = _broken(facts.recording.faults)
    found = []
    for fault in facts.recording.faults:
        if fault.phase != "healed":
            continue
        index = bisect_left(progress, fault.at)
        after = progress[index] if index < len(progress) else max(facts.about.ended_at, fault.at)
        is_disturbed = any(
            begun <= after and healed > fault.at for begun, healed, number in broken if number != fault.number
        )
        if not is_disturbed and _had_work(asked, fault.at):
            found.append((fault, after - fault.at))
    return found


def _progress(facts: Facts) -> tuple[list[float], dict[object, float]]:
    """When anything was claimed or succeeded, and when each task was first taken note of."""
    progress: list[float] = []
    first_taken: dict[object, float] = {}
    for life in facts.lives.values():
        for change, moment in zip(life.changes, life.moments, strict=True):
            first_taken.setdefault(life.task, moment[0])
            if is_claim(change) or change.new_state == "succeeded":
                progress.append(moment[0])
    return sorted(progress), first_taken


def _asked(facts: Facts, first_taken: dict[object, float]) -> tuple[list[float], list[float]]:
    """When messages began and ended to wait for a first worker, each in order."""
    begins, ends = [], []
    for publishing in facts.publishings:
        taken = first_taken.get(publishing.task)
        if publishing.kind == "ok" and taken is not None and taken > publishing.answered_at:
            begins.append(publishing.answered_at)
            ends.append(taken)
    return sorted(begins), sorted(ends)


def _had_work(asked: tuple[list[float], list[float]], at: float) -> bool:
    begins, ends = asked
    return bisect_right(begins, at) > bisect_right(ends, at)


def _broken(faults: list[Fault]) -> list[tuple[float, float, int]]:
    """From when to when each fault lasted."""
    healed = {each.number: each.at for each in faults if each.phase == "healed"}
    return [
        (each.at, healed.get(each.number, float("inf")), each.number)
        for each in faults
        if each.phase == "begun"
    ]


def it_stays_small(facts: Facts, found: Finding) -> None:
    """I13. What a process holds at its end it held when it was warm: descriptors, threads, memory.

    And no connection to Postgres stays in a transaction without a statement, but while something is broken.
    """
    broken = _broken(facts.recording.faults)
    for process, samples in samples_by_process(facts).items():
        found.checked += len(samples)
        quiet = [each for each in samples if not _is_broken(broken, each.at, facts.about.recovery)]
        for each in quiet:
            if each.oldest_transaction > LONGEST_IDLE:
                text = f"{process} was idle in a transaction for {each.oldest_transaction:.1f} s"
                found.violate(text, at=each.at)
        warm = [each for each in quiet if each.at - samples[0].at >= WARM]
        if warm and warm[-1].at - warm[0].at >= SHORTEST:
            _has_not_grown(found, process, warm)


def _is_broken(broken: list[tuple[float, float, int]], at: float, recovery: float) -> bool:
    """Whether something was broken then, or shortly before: connections come and go."""
    return any(begun <= at <= healed + recovery for begun, healed, _ in broken)


def _has_not_grown(found: Finding, process: str, warm: list[Process]) -> None:
    """The best of the last third against the worst of the first: what comes and goes is no leak."""
    third = max(len(warm) // 3, 1)
    early, late = warm[:third], warm[-third:]
    for name, slack in (("fds", SLACK), ("threads", SLACK), ("backends", SLACK), ("rss", MEMORY_SLACK)):
        before = max(getattr(each, name) for each in early)
        after = min(getattr(each, name) for each in late)
        if after > before * GROWTH + slack:
            found.violate(f"{process} had {before} {name}, and {after} at its end", at=late[-1].at)


def samples_by_process(facts: Facts) -> dict[str, list[Process]]:
    """Looks at each process, in order."""
    by_process: dict[str, list[Process]] = {}
    for each in sorted(facts.recording.processes, key=lambda each: each.at):
        if each.kind == "sample":
            by_process.setdefault(each.process, []).append(each)
    return by_process


def logs_are_clean(facts: Facts, found: Finding) -> None:
    """I14. No line tells of a delivery tag that is unknown, of an error nobody looked at, or a secret."""
    forbidden = (*FORBIDDEN, *facts.about.secrets)
    for each in facts.recording.logs:
        found.checked += 1
        for text in forbidden:
            if text in each.line:
                shown = "a secret" if text in facts.about.secrets else text
                found.violate(f"{each.process} logged {shown!r}", at=each.at)


def unfinished(facts: Facts) -> int:
    """How many rows have not ended."""
    return sum(row.state not in TERMINAL for row in facts.recording.final_tasks)

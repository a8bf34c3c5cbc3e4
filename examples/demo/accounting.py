"""The books: what was published against what became of it. Pure: no clock, no I/O.

Every message that was published is exactly one of these: a task's own row
(succeeded, dead, expired), a dead letter without a row (it was no task, or its
identity was taken), or a duplicate that was acked and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SUCCEEDED, DEAD, EXPIRED, DUPLICATE = "succeeded", "dead", "expired", "duplicate"


class Fate(NamedTuple):
    """How a message is meant to end."""

    state: str
    reason: str | None = None
    has_row: bool = True


FATE_BY_KIND: Mapping[str, Fate] = {
    "thumbnail": Fate(SUCCEEDED),
    "row": Fate(SUCCEEDED),
    "report": Fate(SUCCEEDED),
    "email": Fate(SUCCEEDED),
    "no_id": Fate(SUCCEEDED),  # under an id that the worker gave it
    "webhook": Fate(SUCCEEDED),
    "failing": Fate(DEAD, "attempts_exhausted"),
    "giving_up": Fate(DEAD, "gave_up"),
    "too_slow": Fate(DEAD, "timeout"),
    "malformed": Fate(DEAD, "malformed"),
    "unknown": Fate(DEAD, "unknown_task"),
    "invalid": Fate(DEAD, "invalid_payload"),
    "oversize": Fate(DEAD, "oversize"),
    "unroutable": Fate(DEAD, "unroutable"),
    "nameless": Fate(DEAD, "malformed", has_row=False),
    "conflict": Fate(DEAD, "conflict", has_row=False),
    "expired": Fate(EXPIRED),
    "duplicate": Fate(DUPLICATE, has_row=False),
}


class Identity(NamedTuple):
    """What makes two messages the same task."""

    queue: str
    name: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Published:
    """One message that the broker confirmed to the publisher."""

    kind: str
    identity: Identity
    payload: Mapping[str, object] = field(default_factory=dict)

    @property
    def fate(self) -> Fate:
        """How it is meant to end."""
        return FATE_BY_KIND[self.kind]


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row of `tasks`."""

    identity: Identity
    state: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """One open row of `dead_letters`."""

    identity: Identity
    reason: str
    has_row: bool  # belongs to a row of `tasks`


@dataclass(frozen=True, slots=True)
class Facts:
    """What the daemon's database and its metrics say."""

    rows: Sequence[TaskRow]
    letters: Sequence[Letter]
    duplicates: int


@dataclass(frozen=True, slots=True)
class Effects:
    """What the work left behind in the outside world."""

    width_by_thumbnail: Mapping[str, int]
    sales: Mapping[str, tuple[str, int]]  # region and cents by task id
    reports: Mapping[str, tuple[int, int]]  # rows and cents by task id
    mails: Mapping[str, int]  # how often, by task id
    webhooks: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Totals:
    """How many of each."""

    published: int
    succeeded: int
    dead_rows: int
    letters_without_row: int
    expired: int
    duplicates: int
    open_letters: int

    @property
    def dead(self) -> int:
        """Messages that can't be done."""
        return self.dead_rows + self.letters_without_row

    @property
    def add_up(self) -> bool:
        """Whether nothing is missing and nothing is there twice."""
        ended = self.succeeded + self.dead + self.expired + self.duplicates
        return self.published == ended and self.dead == self.open_letters

    def lines(self) -> tuple[str, str]:
        """Both equations, as they are."""
        ended = f"succeeded {self.succeeded} + dead {self.dead} + expired {self.expired}"
        dead = f"rows {self.dead_rows} + letters without a row {self.letters_without_row}"
        return (
            f"published {self.published} = {ended} + duplicates {self.duplicates}",
            f"dead {self.dead} = {dead} = open dead letters {self.open_letters}",
        )


def totals(published: Collection[Published], facts: Facts) -> Totals:
    """Count."""
    count_by_state = Counter(row.state for row in facts.rows)
    return Totals(
        published=len(published),
        succeeded=count_by_state[SUCCEEDED],
        dead_rows=count_by_state[DEAD],
        letters_without_row=sum(not letter.has_row for letter in facts.letters),
        expired=count_by_state[EXPIRED],
        duplicates=facts.duplicates,
        open_letters=len(facts.letters),
    )


def is_settled(published: Collection[Published], facts: Facts) -> bool:
    """Say whether everything has ended, well or not."""
    now = totals(published, facts)
    are_ended = len(facts.rows) == now.succeeded + now.dead_rows + now.expired
    expected = Counter((each.fate.state, each.fate.has_row) for each in published)
    return (
        are_ended
        and len(facts.rows) >= sum(each.fate.has_row for each in published)
        and now.letters_without_row >= expected[DEAD, False]
        and now.duplicates >= expected[DUPLICATE, False]
    )


def problems(published: Collection[Published], facts: Facts, effects: Effects) -> list[str]:
    """Say everything that does not add up, a line each; nothing if all is well."""
    found = [*_wrong_rows(published, facts), *_wrong_letters(published, facts)]
    found += _wrong_effects(published, facts, effects)
    now = totals(published, facts)
    if not now.add_up:
        found += [f"does not add up: {line}" for line in now.lines()]
    return found


def _wrong_rows(published: Collection[Published], facts: Facts) -> Iterator[str]:
    row_by_identity = {row.identity: row for row in facts.rows}
    named = {each.identity: each.fate for each in published if each.fate.has_row and each.identity.id}
    for identity, fate in named.items():
        row = row_by_identity.pop(identity, None)
        if row is None:
            yield f"{_show(identity)}: published, but there is no row of it"
        elif (row.state, row.reason) != (fate.state, fate.reason):
            yield f"{_show(identity)}: {_end(row.state, row.reason)}, not {_end(fate.state, fate.reason)}"
    # the worker gave the others their ids: only their number is known
    stamped = Counter(Fate(row.state, row.reason)._replace(has_row=True) for row in row_by_identity.values())
    expected = Counter(each.fate for each in published if each.fate.has_row and not each.identity.id)
    for fate in stamped | expected:
        if stamped[fate] != expected[fate]:
            yield (
                f"{_end(fate.state, fate.reason)} under an id that nobody published: {stamped[fate]} rows,"
                f" not {expected[fate]}"
            )


def _wrong_letters(published: Collection[Published], facts: Facts) -> Iterator[str]:
    """Each dead row has exactly one letter with the same reason; so has each message without a row."""
    of_rows: Counter[tuple[Identity, str | None]] = Counter(
        (row.identity, row.reason) for row in facts.rows if row.state == DEAD
    )
    of_others: Counter[tuple[Identity, str | None]] = Counter(
        (each.identity, each.fate.reason)
        for each in published
        if each.fate.state == DEAD and not each.fate.has_row
    )
    for has_row, expected in ((True, of_rows), (False, of_others)):
        there: Counter[tuple[Identity, str | None]] = Counter(
            (letter.identity, letter.reason) for letter in facts.letters if letter.has_row is has_row
        )
        for (identity, reason), count in (expected - there).items():
            yield f"{_show(identity)}: {count} dead letter with the reason {reason} is missing"
        for (identity, reason), count in (there - expected).items():
            yield f"{_show(identity)}: {count} dead letter too many, with the reason {reason}"


def _wrong_effects(published: Collection[Published], facts: Facts, effects: Effects) -> Iterator[str]:
    sales = {_id(each): each.payload for each in published if each.kind == "row"}
    regions = Counter(str(sale["region"]) for sale in sales.values())
    cents: Counter[str] = Counter()
    for sale in sales.values():
        cents[str(sale["region"])] += int(str(sale["cents"]))
    yield from _differences(
        "thumbnail",
        {_id(each): each.payload["width"] for each in published if each.kind == "thumbnail"},
        effects.width_by_thumbnail,
    )
    yield from _differences(
        "imported row", {key: (sale["region"], sale["cents"]) for key, sale in sales.items()}, effects.sales
    )
    yield from _differences(
        "report",
        {f"report-{region}": (count, cents[region]) for region, count in regions.items()},
        effects.reports,
    )
    yield from _differences("e-mail", _once_each("email.send", facts), effects.mails)
    yield from _differences("webhook", _once_each("webhook.call", facts), effects.webhooks)


def _once_each(name: str, facts: Facts) -> dict[str, object]:
    return {
        str(row.identity.id): 1 for row in facts.rows if row.identity.name == name and row.state == SUCCEEDED
    }


def _differences(what: str, expected: Mapping[str, object], there: Mapping[str, object]) -> Iterator[str]:
    for key in sorted(expected.keys() | there.keys()):
        if key not in there:
            yield f"{what} {key} is missing"
        elif key not in expected:
            yield f"{what} {key} is there, but nobody asked for it"
        elif there[key] != expected[key]:
            yield f"{what} {key} is {there[key]}, not {expected[key]}"


def _id(published: Published) -> str:
    return str(published.identity.id)


def _show(identity: Identity) -> str:
    return "/".join(part or "?" for part in identity)


def _end(state: str, reason: str | None) -> str:
    return f"{state} ({reason})" if reason else state

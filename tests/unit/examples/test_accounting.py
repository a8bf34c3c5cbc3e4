from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from examples.demo.accounting import (
    Effects,
    Facts,
    Identity,
    Letter,
    Published,
    TaskRow,
    is_settled,
    problems,
    totals,
)

ROW = Published("row", Identity("default", "sales.import_row", "s-1"), {"region": "north", "cents": 250})
REPORT = Published("report", Identity("default", "report.render", "report-north"))
THUMBNAIL = Published("thumbnail", Identity("media", "thumbnail.make", "t-1"), {"width": 160})
MAIL = Published("email", Identity("email", "email.send", "m-1"))
NO_ID = Published("no_id", Identity("email", "email.send", None))
WEBHOOK = Published("webhook", Identity("webhook", "webhook.call", "w-1"))
FAILING = Published("failing", Identity("default", "invoice.charge", "c-1"))
NAMELESS = Published("nameless", Identity("default", None, "n-1"))
LATE = Published("expired", Identity("email", "email.send", "late"))
AGAIN = Published("duplicate", MAIL.identity)
CONFLICT = Published("conflict", MAIL.identity)
PUBLISHED = [ROW, REPORT, THUMBNAIL, MAIL, NO_ID, WEBHOOK, FAILING, NAMELESS, LATE, AGAIN, CONFLICT]

FACTS = Facts(
    rows=[
        TaskRow(ROW.identity, "succeeded"),
        TaskRow(REPORT.identity, "succeeded"),
        TaskRow(THUMBNAIL.identity, "succeeded"),
        TaskRow(MAIL.identity, "succeeded"),
        TaskRow(Identity("email", "email.send", "an-id-of-the-worker"), "succeeded"),
        TaskRow(WEBHOOK.identity, "succeeded"),
        TaskRow(FAILING.identity, "dead", "attempts_exhausted"),
        TaskRow(LATE.identity, "expired"),
    ],
    letters=[
        Letter(FAILING.identity, "attempts_exhausted", has_row=True),
        Letter(NAMELESS.identity, "malformed", has_row=False),
        Letter(CONFLICT.identity, "conflict", has_row=False),
    ],
    duplicates=1,
)
EFFECTS = Effects(
    width_by_thumbnail={"t-1": 160},
    sales={"s-1": ("north", 250)},
    reports={"report-north": (1, 250)},
    mails={"m-1": 1, "an-id-of-the-worker": 1},
    webhooks={"w-1": 1},
)


def test_what_ended_as_it_should_leaves_no_problem() -> None:
    assert problems(PUBLISHED, FACTS, EFFECTS) == []
    assert is_settled(PUBLISHED, FACTS)


def test_the_totals_are_two_equations() -> None:
    counted = totals(PUBLISHED, FACTS)

    assert counted.add_up
    assert counted.lines() == (
        "published 11 = succeeded 6 + dead 3 + expired 1 + duplicates 1",
        "dead 3 = rows 1 + letters without a row 2 = open dead letters 3",
    )


def without_row(published: Published) -> Callable[[Facts], Facts]:
    return lambda facts: replace(
        facts, rows=[row for row in facts.rows if row.identity != published.identity]
    )


def with_row(row: TaskRow) -> Callable[[Facts], Facts]:
    def change(facts: Facts) -> Facts:
        others = [other for other in facts.rows if other.identity != row.identity]
        return replace(facts, rows=[*others, row])

    return change


def with_letters(*letters: Letter) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, letters=letters)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            without_row(ROW), "default/sales.import_row/s-1: published, but there is no row of it", id="lost"
        ),
        pytest.param(
            with_row(TaskRow(ROW.identity, "dead", "crashed")),
            "default/sales.import_row/s-1: dead (crashed), not succeeded",
            id="another end",
        ),
        pytest.param(
            with_row(TaskRow(FAILING.identity, "dead", "timeout")),
            "default/invoice.charge/c-1: dead (timeout), not dead (attempts_exhausted)",
            id="another reason",
        ),
        pytest.param(
            with_row(TaskRow(MAIL.identity, "running")),
            "email/email.send/m-1: running, not succeeded",
            id="not ended",
        ),
        pytest.param(
            with_row(TaskRow(Identity("email", "email.send", "x"), "succeeded")),
            "succeeded under an id that nobody published: 2 rows, not 1",
            id="stamped twice",
        ),
        pytest.param(
            with_letters(*FACTS.letters[1:]),
            "default/invoice.charge/c-1: 1 dead letter with the reason attempts_exhausted is missing",
            id="letter lost",
        ),
        pytest.param(
            with_letters(*FACTS.letters, FACTS.letters[2]),
            "email/email.send/m-1: 1 dead letter too many, with the reason conflict",
            id="letter twice",
        ),
        pytest.param(
            lambda facts: replace(facts, duplicates=0),
            "does not add up: published 11 = succeeded 6 + dead 3 + expired 1 + duplicates 0",
            id="duplicate not counted",
        ),
    ],
)
def test_what_the_database_has_otherwise_is_a_problem(change: Callable[[Facts], Facts], problem: str) -> None:
    assert problem in problems(PUBLISHED, change(FACTS), EFFECTS)


@pytest.mark.parametrize(
    ("effects", "problem"),
    [
        pytest.param(replace(EFFECTS, width_by_thumbnail={}), "thumbnail t-1 is missing", id="no file"),
        pytest.param(
            replace(EFFECTS, width_by_thumbnail={"t-1": 320}), "thumbnail t-1 is 320, not 160", id="size"
        ),
        pytest.param(replace(EFFECTS, sales={}), "imported row s-1 is missing", id="no row"),
        pytest.param(
            replace(EFFECTS, reports={"report-north": (0, 0)}),
            "report report-north is (0, 0), not (1, 250)",
            id="report without its rows",
        ),
        pytest.param(
            replace(EFFECTS, mails={**EFFECTS.mails, "m-1": 2}), "e-mail m-1 is 2, not 1", id="mail twice"
        ),
        pytest.param(
            replace(EFFECTS, webhooks={"w-1": 1, "w-2": 1}),
            "webhook w-2 is there, but nobody asked for it",
            id="call out of nowhere",
        ),
    ],
)
def test_work_that_was_not_done_or_done_twice_is_a_problem(effects: Effects, problem: str) -> None:
    assert problems(PUBLISHED, FACTS, effects) == [problem]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(without_row(ROW), id="not begun"),
        pytest.param(with_row(TaskRow(ROW.identity, "retrying", None)), id="waiting"),
        pytest.param(with_letters(*FACTS.letters[:2]), id="letter on its way"),
        pytest.param(lambda facts: replace(facts, duplicates=0), id="duplicate on its way"),
    ],
)
def test_it_is_not_over_while_something_is_on_its_way(change: Callable[[Facts], Facts]) -> None:
    assert not is_settled(PUBLISHED, change(FACTS))

"""Every hostile message ends as it should, and those behind it are done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.e2e.conftest import Service, message
from tests.hostile import bodies, envelopes, headers, properties
from tests.hostile.case import DUE, EXISTING, LIMIT, Case
from tests.hostile.corpus import drain, ends, publish_all
from tests.support.daemon import until

CLASSES = {
    "bodies": bodies.CASES,
    "envelopes": envelopes.CASES,
    "properties": properties.CASES,
    "headers": headers.CASES,
}
GOOD = 100  # messages behind them
OPEN = "state IN ('running', 'retrying')"
ALL = 240  # at least so many have to be delivered, of all classes

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("cases", CLASSES.values(), ids=CLASSES)
def test_each_message_has_its_end_and_its_letter_and_those_behind_it_are_done(
    service: Service, cases: Sequence[Case]
) -> None:
    worker = service.start(HANDLERS="tests.hostile.handlers", MAX_BODY_BYTES=str(LIMIT), DEAD_LETTERS="queue")
    service.publish(message("note", EXISTING, {"case": EXISTING}))
    service.until_states(succeeded=1)

    major, refused = asyncio.run(
        publish_all(service.amqp_url, cases, exchange=f"{service.prefix}.tasks", key=b"default")
    )
    service.publish(*(message("note", f"good {n}", {"case": f"good {n}"}) for n in range(GOOD)))

    otherwise = refused ^ {case.name for case in cases if case.refused_by.refuses(major)}
    assert not otherwise, "refused, or not, by this broker alone:\n" + "\n".join(sorted(otherwise))
    delivered = [case for case in cases if case.name not in refused]
    done = "SELECT count(*) FROM tasks WHERE message_id LIKE 'good %' AND state = 'succeeded'"
    until("the good messages are done", lambda: service.rows(done)[0]["count"] == GOOD)
    until("nothing is owed now", lambda: not count(service, f"outbox WHERE {DUE}"))
    until("every message has an end", lambda: not count(service, f"tasks WHERE {OPEN}"))
    until("the queue is empty", lambda: service.depth() == 0)
    assert worker.stop() == 0  # when the last that it took is settled, too
    found = ends(service, delivered)
    wrong = [
        f"{case}: {found[case.name]}; not {case.end}" for case in delivered if found[case.name] != case.end
    ]
    assert not wrong, "\n".join(wrong)
    assert count(service, "tasks") == 1 + GOOD + sum(end.state is not None for end in found.values())
    assert count(service, "dead_letters") == sum(end.reason is not None for end in found.values())
    assert service.depth() == 0  # nothing was held back
    sent_on = asyncio.run(drain(service.amqp_url, f"{service.prefix}.dead.default"))
    assert sent_on == sorted(case.body for case in delivered if case.end.reason is not None)


def test_there_are_enough_of_them() -> None:
    always = [case for cases in CLASSES.values() for case in cases if case.refused_by.name == "NONE"]

    assert len(always) >= ALL


def count(service: Service, what: str) -> int:
    number: int = service.rows(f"SELECT count(*) FROM {what}")[0]["count"]
    return number

"""Seeds that once broke a promise, or came close to it; each with what it was.

A seed stands for what is drawn from it. When the drawing changes, it is another one: then the rule that
it broke is held by the test beside the code, which is named here.
"""

from __future__ import annotations

import pytest

from tests.simulation.judging import judge

PINNED = {
    # a take-over began after the task's not-after; tests/unit/test_arrival.py, "takeover, past its not-after"
    77: "I15 begun 13.356 s after its time",
}


@pytest.mark.parametrize("seed", PINNED)
def test_a_pinned_seed_keeps_every_promise(seed: int) -> None:
    judged = judge(seed)

    assert not judged.problems, "\n".join(judged.witnesses())

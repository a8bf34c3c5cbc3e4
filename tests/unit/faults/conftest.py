"""What the tests of the checker share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest


@pytest.fixture
def count_steps() -> Callable[[Callable[[], object]], int]:
    """Count the lines that something executes: time that no other program takes part in."""

    def count(work: Callable[[], object]) -> int:
        lines = 0

        def trace(_: FrameType, event: str, __: object) -> object:
            nonlocal lines
            lines += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]  # what typeshed asks for is narrower
        try:
            work()
        finally:
            sys.settrace(before)
        return lines

    return count

"""The work: one small JSON body per message. Standard library only: peers import it as well."""

from __future__ import annotations

SIZE = 60  # bytes
RESULT = {"x": 1}  # what every handler returns
FIRST = 1_000_000  # numbers of one width
QUEUE = "bench"
TASK = "bench"  # the task's name, where a contestant has names

_BEGIN, _END = b'{"n":%d,"text":"', b'"}'


def text(size: int = SIZE) -> str:
    """Return the member `text`, which makes the body `size` bytes long."""
    return "x" * (size - len(_BEGIN % FIRST) - len(_END))


def payload(number: int) -> dict[str, int | str]:
    """Return the members of the body of message `number`, counted from 0."""
    return {"n": FIRST + number, "text": text()}


def body(number: int, size: int = SIZE) -> bytes:
    """Return the body of message `number`, counted from 0."""
    return _BEGIN % (FIRST + number) + text(size).encode() + _END

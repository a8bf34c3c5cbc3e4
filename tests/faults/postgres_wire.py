"""What the messages of one connection to Postgres say of commits. Reads, and never fails.

A commit is a query that ends with `COMMIT`, or a writing statement outside any transaction. It is committed
when the server says that it is ready again, and has said nothing of an error.
"""

from __future__ import annotations

import re
import struct

from tests.faults.records import Wire
from tests.faults.splitting import UNREADABLE, Splitter

LENGTH = struct.Struct(">I")
LONGEST_START = 10_000
IDLE = b"I"
WRITES = re.compile(rb"\b(INSERT INTO|UPDATE|DELETE FROM)\b")
FROM_CLIENT = b"BCDEFHPQSXcdfp"
FROM_SERVER = b"123ACDEGHIKNRSTVWZcdnstv"

Piece = tuple[bytes, tuple[Wire, ...]]


class PostgresReader:
    """Both directions of one connection; records lack the time and whose connection it is."""

    def __init__(self) -> None:
        self._has_begun = False
        self._up = Splitter(self._measure_sent)
        self._down = Splitter(measure_received)
        self._writing: set[bytes] = set()  # names of prepared statements
        self._is_idle = True
        self._is_committing = False
        self._is_refused = False

    def from_client(self, data: bytes) -> list[Piece]:
        """Return what may be carried on, in pieces, each with what it says."""
        return [(piece, self._sent(piece) if whole else ()) for piece, whole in self._up.feed(data)]

    def from_server(self, data: bytes) -> list[Piece]:
        return [(piece, self._received(piece) if whole else ()) for piece, whole in self._down.feed(data)]

    def count_unsettled(self, queue: str) -> int:
        """None: that is RabbitMQ's."""
        return 0

    def _measure_sent(self, data: bytes) -> int:
        if self._has_begun and data[0] not in FROM_CLIENT:
            return UNREADABLE
        at = 1 if self._has_begun else 0  # the first message alone has no kind
        if len(data) < at + LENGTH.size:
            return 0
        (size,) = LENGTH.unpack_from(data, at)
        if size < LENGTH.size or (not self._has_begun and size > LONGEST_START):
            return UNREADABLE
        self._has_begun |= len(data) >= at + size
        return int(at + size)

    def _sent(self, message: bytes) -> tuple[Wire, ...]:
        kind, content = message[:1], message[1 + LENGTH.size :]
        if kind == b"P":
            name, _, statement = content.partition(b"\0")
            self._writing.discard(name)
            if WRITES.search(statement):
                self._writing.add(name)
        elif kind == b"Q" and self._is_commit(content.rstrip(b"\0; \n").lstrip()):
            return self._commits()
        return self._executed(content) if kind == b"B" else ()

    def _executed(self, content: bytes) -> tuple[Wire, ...]:
        """See what is bound, of what was prepared: behind the name of a portal."""
        is_writing = content.partition(b"\0")[2].partition(b"\0")[0] in self._writing
        return self._commits() if self._is_idle and is_writing else ()

    def _is_commit(self, statement: bytes) -> bool:
        if self._is_idle:
            return statement[:5].upper() != b"BEGIN" and bool(WRITES.search(statement))
        return statement[-6:].upper() == b"COMMIT"

    def _commits(self) -> tuple[Wire, ...]:
        self._is_committing, self._is_refused = True, False
        return (Wire(kind="commit"),)

    def _received(self, message: bytes) -> tuple[Wire, ...]:
        kind = message[:1]
        self._is_refused |= kind == b"E"
        if kind != b"Z":
            return ()
        self._is_idle = message[1 + LENGTH.size :] == IDLE
        is_committed, self._is_committing = self._is_committing and not self._is_refused, False
        return (Wire(kind="committed"),) if is_committed else ()


def measure_received(data: bytes) -> int:
    """How long the first message of a server is."""
    if data[0] not in FROM_SERVER:
        return UNREADABLE
    if len(data) < 1 + LENGTH.size:
        return 0
    (size,) = LENGTH.unpack_from(data, 1)
    return 1 + int(size) if size >= LENGTH.size else UNREADABLE

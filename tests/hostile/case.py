"""One hostile message: the bytes that go over the wire, and what has to become of it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.support.raw_amqp import FLAG, long, short, table

LIMIT = 10 * 1024  # MAX_BODY_BYTES of the daemons that meet the corpus
EXISTING = "taken"  # of a task that is done before the corpus comes
DUE = "deliver_at < now() + interval '1 day'"  # what is owed after that waits until the year 2999
ORDER = sorted(FLAG, key=lambda name: -FLAG[name])  # of the wire


class Broker(Enum):
    """Who ends the channel or the connection over a message instead of delivering it."""

    NONE = auto()
    ALL = auto()
    BEFORE_4 = auto()
    FROM_4 = auto()

    def refuses(self, major: int) -> bool:
        """Whether a RabbitMQ of this major version is meant."""
        return self is Broker.ALL or self is (Broker.FROM_4 if major >= 4 else Broker.BEFORE_4)


@dataclass(frozen=True)
class End:
    """What is left of a message: a row or none, a dead letter or none."""

    state: str | None
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.state or 'no row'}, {self.reason or 'no letter'}"


DONE = End("succeeded")
EXPIRED = End("expired")


def dead(reason: str) -> End:
    """Say that its identity can be read: a row, and a dead letter that belongs to it."""
    return End("dead", reason)


def kept(reason: str) -> End:
    """Say that it is no task of ours: a dead letter alone."""
    return End(None, reason)


@dataclass(frozen=True)
class Case:
    """A message: content header and body as bytes, what becomes of it, and whether a broker delivers it.

    `flags` and `properties` are what a content header has behind the body's size.
    """

    name: str
    end: End
    flags: int = 0
    properties: bytes = field(default=b"", repr=False)
    body: bytes = field(default=b"", repr=False)
    task_id: str | None = None  # of its row; where there is none, the row's result says which case it is
    refused_by: Broker = Broker.NONE

    def __str__(self) -> str:
        return self.name


def sent(**properties: bytes) -> tuple[int, bytes]:
    """Encode properties; each is given as it is on the wire, without a look at whether it may be so."""
    flags = sum(FLAG[name] for name in properties)
    return flags, b"".join(properties[name] for name in ORDER if name in properties)


def tagged(name: str) -> bytes:
    """A body that is good, and that no other case has."""
    return b'{"case": "' + name.encode() + b'"}'


def moment(seconds: int) -> bytes:
    """A timestamp."""
    return struct.pack(">Q", seconds)


def text(value: str | bytes) -> bytes:
    """A header's value: a long string."""
    return b"S" + long(value.encode() if isinstance(value, str) else value)


def whole(value: int) -> bytes:
    """A header's value: a signed integer of 64 bits."""
    return b"l" + struct.pack(">q", value)


def crafted(
    name: str, end: End, properties: Mapping[str, bytes], *, refused_by: Broker = Broker.NONE
) -> Case:
    """Make a message that is good but for `properties`, which may replace its type and its id."""
    flags, encoded = sent(
        **{"message_type": short(b"note"), "message_id": short(name.encode()), **properties}
    )
    return Case(name, end, flags, encoded, tagged(name), name, refused_by)


def named(name: str, end: End = DONE, *, refused_by: Broker = Broker.NONE, **properties: bytes) -> Case:
    """Make the same with the properties as arguments."""
    return crafted(name, end, properties, refused_by=refused_by)


def headed(
    name: str, *headers: tuple[bytes, bytes], end: End = DONE, refused_by: Broker = Broker.NONE
) -> Case:
    """Make a message that is good but for its headers."""
    return named(name, end, refused_by=refused_by, headers=table(*headers))


def unique(cases: Iterable[Case]) -> tuple[Case, ...]:
    """See that each case can be told from every other: by its name, and by its body."""
    found = tuple(cases)
    for what in ("name", "body"):
        values = [getattr(case, what) for case in found]
        twice = {str(value)[:80] for value in values if values.count(value) > 1}
        assert not twice, f"two cases have the same {what}: {twice}"
    return found

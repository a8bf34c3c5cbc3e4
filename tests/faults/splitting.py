"""Cutting a stream of bytes into messages that say their own length; it never fails."""

from __future__ import annotations

from collections.abc import Callable

MOST_HELD = 1 << 20  # a longer message is carried on as it comes, unread
UNREADABLE = -1


class Splitter:
    """Gives whole messages; what is too long, or no message at all, in pieces that are not read.

    `measure` gets all that is there, from a message's begin on, and says how long the message is: 0 while
    that can't be seen yet, `UNREADABLE` if this is none of the protocol. From then on nothing of the stream
    is read any more: it is only carried.
    """

    def __init__(self, measure: Callable[[bytes], int]) -> None:
        self._measure = measure
        self._held = b""
        self._left = 0  # bytes of a message that is too long to be held
        self.is_blind = False

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Take bytes; return all that may be carried on, each piece with whether it is a whole message."""
        rest = self._held + data
        pieces: list[tuple[bytes, bool]] = []
        while rest:
            size, is_whole = self._next(rest)
            if size == 0:
                break
            pieces.append((rest[:size], is_whole))
            rest = rest[size:]
        self._held = rest
        return pieces

    def _next(self, rest: bytes) -> tuple[int, bool]:
        """How much to carry on now, and whether that is a message; 0: nothing yet."""
        if self.is_blind:
            return len(rest), False
        if self._left == 0:
            size = self._measure(rest)
            if size == UNREADABLE:
                self.is_blind = True
                return len(rest), False
            if size <= MOST_HELD:
                return (size, True) if 0 < size <= len(rest) else (0, False)
            self._left = size
        size = min(self._left, len(rest))
        self._left -= size
        return size, False

"""Whether the broker still serves a consumer of ours: asked, since it does not always say when it stops.

A consumer may be forgotten while its channel lives. Where it is the only one of its
queue, the count of consumers tells. Where others consume too, what tells is a queue in
which messages wait while a consumer with room gets none.
"""

from __future__ import annotations

from broker_worker.amqp.looking import QueueLook

STRIKES = 2  # looks in a row that find a consumer forgotten, before it is replaced
MOST_STRIKES = 40  # where to replace it has not helped


class Presence:
    """Judges the looks at one queue, over all the consumers that we have there one after the other."""

    def __init__(self) -> None:
        self._bearable = STRIKES
        self._strikes = 0
        self._deliveries = 0

    def begin(self) -> None:
        """Note that another consumer took the place of the one before."""
        self._strikes = self._deliveries = 0

    def judge(self, look: QueueLook | None, *, deliveries: int, has_room: bool) -> str | None:
        """Say why the consumer has to be replaced, or nothing.

        `deliveries` are those that it had so far; `has_room` is whether its prefetch has been free since the
        last look, and nothing is on its way.
        """
        if look is None:
            return "the queue does not exist any more"
        if deliveries > self._deliveries:
            self._deliveries, self._strikes, self._bearable = deliveries, 0, STRIKES
            return None
        reason = _suspicion(look, has_room=has_room)
        self._strikes = self._strikes + 1 if reason else 0
        if self._strikes < self._bearable:
            return None
        self._bearable = min(2 * self._bearable, MOST_STRIKES)
        return reason


def _suspicion(look: QueueLook, *, has_room: bool) -> str | None:
    if look.consumers == 0:
        return "the broker does not know the consumer any more"
    if look.ready > 0 and has_room:
        return "the broker has messages and delivers none"
    return None

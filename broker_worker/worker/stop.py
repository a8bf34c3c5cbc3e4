"""How a running attempt is asked to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto


class StopReason(Enum):
    """Who asks."""

    TIMEOUT = auto()
    CANCELLED = auto()  # an operator
    SHUTDOWN = auto()


class Stop:
    """One attempt's: whoever asks first is the reason. Asked on the event loop, read from any thread."""

    __slots__ = ("_end", "reason")

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._end: Callable[[], object] | None = None

    def ask(self, reason: StopReason) -> None:
        """Ask the attempt to end; asked again, it is told again."""
        self.reason = self.reason or reason
        if self._end is not None:
            self._end()

    def tell(self, end: Callable[[], object]) -> None:
        """Say how the attempt is told; at once if it was asked already."""
        self._end = end
        if self.reason is not None:
            end()

    def forget(self) -> None:
        """Tell nobody any more: the attempt is over.

        Its task holds this by its context, and this held the task: a cycle that only the collector frees.
        """
        self._end = None

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Tell nothing while this is entered: what runs then looks at `reason` itself."""
        end, self._end = self._end, None
        try:
            yield
        finally:
            self._end = end

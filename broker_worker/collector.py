"""When Python's cycle collector looks, for a daemon whose objects live until their commit.

Each delivery makes some hundred objects that are freed with it, without the collector. Left
alone it looks at those in flight again and again, for a tenth of what a small task costs. Here
it looks once a second, so that what failed attempts leave behind in cycles (an exception, its
frames, and the body in one of them) does not pile up, and whenever very much is there at once.
"""

from __future__ import annotations

import gc

PYTHONS_THRESHOLDS = (700, 10, 10)
THRESHOLDS = (200_000, 20, 50)  # objects; collections of the younger generation
YOUNG = 0


class Collector:
    """Paces the collector of this process. A program that has set thresholds of its own keeps them."""

    def __init__(self) -> None:
        """Never look again at what is there now."""
        self._is_ours = gc.get_threshold() == PYTHONS_THRESHOLDS
        if self._is_ours:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*THRESHOLDS)

    async def run_once(self) -> None:
        """Look at what has come since the last time."""
        if self._is_ours:
            gc.collect(YOUNG)

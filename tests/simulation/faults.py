"""What goes wrong: how often each thing that can, and what is planned for which moment."""

from __future__ import annotations

from typing import Literal

from tests.simulation.world import World

# Drawn anew at each call; the share of those that it strikes, in a simulation in which it happens at all.
RATES: dict[str, tuple[float, float]] = {
    "store_refused": (0.005, 0.05),  # not executed, and told at once
    "store_transient": (0.005, 0.05),  # 40001 and the like
    "store_timeout": (0.002, 0.02),  # not executed, and told when patience ends
    "store_slow": (0.005, 0.05),
    "reply_lost": (0.005, 0.06),  # executed, and nobody knows
    "executed_late": (0.002, 0.02),  # told that there is no answer, and executed after that
    "row_locked": (0.01, 0.1),  # another transaction holds it: come again
    "confirm_lost": (0.005, 0.08),
    "publish_refused": (0.005, 0.05),
    "publish_returned": (0.005, 0.05),
    "publish_twice": (0.005, 0.08),
}
SHARE = 0.6  # of the simulations, in which a kind happens


class Faults:
    """The dice of one simulation."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.world = world
        self.outage: Literal["", "refuses", "hangs"] = ""  # of the database, for all
        self._rates = {
            kind: random.uniform(*bounds) if random.random() < SHARE else 0.0
            for kind, bounds in RATES.items()
        }

    def strikes(self, kind: str) -> bool:
        """Throw the die for `kind`."""
        if self.world.chance(self._rates[kind]):
            self.world.broke(kind)
            return True
        return False

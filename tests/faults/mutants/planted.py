"""Handlers that bring a mutant along: the daemon that imports them has its mistake from then on."""

from __future__ import annotations

import os
from contextlib import ExitStack

from tests.faults.handlers import registry
from tests.faults.mutants.on_servers import MUTANTS

__all__ = ["PLANTED", "registry"]

PLANTED = "PLANTED_MUTANT"  # an environment variable; empty: none

_for_good = ExitStack()
for _mutant in MUTANTS:
    if _mutant.name == os.environ.get(PLANTED):
        _for_good.enter_context(_mutant.patch())

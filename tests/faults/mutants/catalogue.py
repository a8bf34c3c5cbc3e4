"""All mutants. docs/reliability.md lists them with what kills each."""

from __future__ import annotations

from tests.faults.mutants import claiming, publishing, settling

MUTANTS = (*settling.MUTANTS, *publishing.MUTANTS, *claiming.MUTANTS)

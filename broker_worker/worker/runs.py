"""What this process knows of its own runs: it lives and dies with the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker_worker.outcome import Outcome
from broker_worker.ports import Delivery
from broker_worker.step import Claim
from broker_worker.task import Holder


@dataclass(slots=True)
class Run:
    """A claim being worked on, and the delivery that is acked at its end."""

    claim: Claim
    delivery: Delivery
    outcome: Outcome | None = None  # what the handler led to, while it is not recorded yet


class Runs:
    """Every claim of this process, from the moment its commit is known until its outcome is."""

    def __init__(self) -> None:
        self._run_by_claim: dict[tuple[int, int], Run] = {}

    def __len__(self) -> int:
        return len(self._run_by_claim)

    def recall(self, key: int, epoch: int) -> Holder:
        """Say whether a run of ours holds the task, and whether its delivery is still good for an ack."""
        run = self._run_by_claim.get((key, epoch))
        if run is None:
            return Holder.HERE_FORGOTTEN
        return Holder.HERE if run.delivery.is_alive else Holder.HERE_ADRIFT

    def remember(self, claim: Claim, delivery: Delivery) -> None:
        """Know a run."""
        self._run_by_claim[claim.key, claim.epoch] = Run(claim, delivery)

    def adopt(self, key: int, epoch: int, delivery: Delivery) -> bool:
        """Let `delivery` take the place of the one that the run lost; `False` if that run is over."""
        run = self._run_by_claim.get((key, epoch))
        if run is None:
            return False
        run.delivery = delivery
        return True

    def conclude(self, claim: Claim, outcome: Outcome) -> None:
        """Keep what a run led to until it is recorded, also when its recording is cut short."""
        run = self._run_by_claim.get((claim.key, claim.epoch))
        if run is not None:
            run.outcome = outcome

    def forget(self, claim: Claim) -> Delivery | None:
        """End a run; the delivery that is now to be acked, unless it was forgotten before."""
        run = self._run_by_claim.pop((claim.key, claim.epoch), None)
        return run.delivery if run else None

    def keys(self) -> list[int]:
        """Every task that this process runs."""
        return [key for key, _ in self._run_by_claim]

    def unfinished(self) -> Sequence[Run]:
        """Every run without a recorded outcome."""
        return list(self._run_by_claim.values())

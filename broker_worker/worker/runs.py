"""What this process knows of its own runs: it lives and dies with the process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker_worker.outcome import Outcome
from broker_worker.ports import Delivery
from broker_worker.step import Claim
from broker_worker.task import Holder
from broker_worker.worker.stop import Stop, StopReason

CANCEL_INTERVAL = 5.0  # seconds for a run that an operator cancels to end, before it is asked again


@dataclass(slots=True)
class Run:
    """A claim being worked on, the delivery that is acked at its end, and the one that it began with."""

    claim: Claim
    delivery: Delivery
    origin: Delivery
    outcome: Outcome | None = None  # what the handler led to, while it is not recorded yet
    stop: Stop = field(default_factory=Stop)
    cancelled_at: float | None = None  # by the event loop's time


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
        self._run_by_claim[claim.row.key, claim.row.epoch] = Run(claim, delivery, origin=delivery)

    def adopt(self, key: int, epoch: int, delivery: Delivery) -> bool:
        """Let `delivery` take the place of the one that the run lost; `False` if that run is over."""
        run = self._run_by_claim.get((key, epoch))
        if run is None:
            return False
        run.delivery = delivery
        return True

    def led_to_by(self, delivery: Delivery) -> Run | None:
        """Find the run that began with a delivery, or that holds it by now."""
        for run in self._run_by_claim.values():
            if delivery is run.origin or delivery is run.delivery:
                return run
        return None

    def stop_of(self, claim: Claim) -> Stop:
        """How this run is asked to end."""
        run = self._run_by_claim.get((claim.row.key, claim.row.epoch))
        return run.stop if run is not None else Stop()

    def cancel(self, key: int, epoch: int) -> None:
        """Ask a run to end because an operator wants it so, and again where that was not heard.

        Called at each look at the rows. One that is over, or ends for another reason, is left alone.
        """
        run = self._run_by_claim.get((key, epoch))
        if run is None or run.stop.reason not in {None, StopReason.CANCELLED}:
            return
        now = asyncio.get_running_loop().time()
        if run.cancelled_at is None or now - run.cancelled_at >= CANCEL_INTERVAL:
            run.cancelled_at = now
            run.stop.ask(StopReason.CANCELLED)

    def conclude(self, claim: Claim, outcome: Outcome) -> None:
        """Keep what a run led to until it is recorded, also when its recording is cut short."""
        run = self._run_by_claim.get((claim.row.key, claim.row.epoch))
        if run is not None:
            run.outcome = outcome

    def forget(self, claim: Claim) -> Delivery | None:
        """End a run; the delivery that is now to be acked, unless it was forgotten before."""
        run = self._run_by_claim.pop((claim.row.key, claim.row.epoch), None)
        return run.delivery if run else None

    def keys(self) -> list[int]:
        """Every task that this process runs."""
        return [key for key, _ in self._run_by_claim]

    def claims(self) -> list[tuple[int, int]]:
        """The task and the epoch of every run."""
        return list(self._run_by_claim)

    def unfinished(self) -> Sequence[Run]:
        """Every run without a recorded outcome."""
        return list(self._run_by_claim.values())

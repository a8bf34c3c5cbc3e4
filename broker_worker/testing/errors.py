"""What a test is told when it asks for something that can't be."""

from __future__ import annotations

from broker_worker.errors import BrokerWorkerError


class HarnessError(BrokerWorkerError):
    """The harness can't do what the test asks, or its worker could not go on."""

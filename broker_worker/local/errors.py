"""The one error of this package."""

from __future__ import annotations

from broker_worker.errors import BrokerWorkerError


class LocalServerError(BrokerWorkerError):
    """A server cannot be had on this machine; one line says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

"""A worker daemon for RabbitMQ and Postgres: handlers register here, publishers need no part of it."""

from broker_worker.errors import BrokerWorkerError, ConfigurationError
from broker_worker.outcome import GiveUp, Retry
from broker_worker.registry import Registry
from broker_worker.context import Context

__all__ = [
    "BrokerWorkerError",
    "ConfigurationError",
    "Context",
    "GiveUp",
    "Registry",
    "Retry",
]

"""A worker daemon for RabbitMQ and Postgres: handlers register here, publishers need no part of it."""

from broker_worker.context import BaseContext, Completion, Context, SyncContext
from broker_worker.errors import BrokerWorkerError, ConfigurationError
from broker_worker.middleware import CallNext, ErrorReport, Middleware, report_errors
from broker_worker.outcome import GiveUp, Outcome, Retry
from broker_worker.registry import Registry
from broker_worker.retry import Policy

__all__ = [
    "BaseContext",
    "BrokerWorkerError",
    "CallNext",
    "Completion",
    "ConfigurationError",
    "Context",
    "ErrorReport",
    "GiveUp",
    "Middleware",
    "Outcome",
    "Policy",
    "Registry",
    "Retry",
    "SyncContext",
    "report_errors",
]

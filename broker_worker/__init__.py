"""A worker daemon for RabbitMQ and Postgres: handlers register here, publishers need no part of it."""

from broker_worker.context import BaseContext, Completion, Context, SyncContext
from broker_worker.errors import (
    BrokerWorkerError,
    ClaimLostError,
    ConfigurationError,
    StoreUnavailableError,
)
from broker_worker.middleware import CallNext, ErrorReport, Middleware, report_errors
from broker_worker.outcome import (
    Cancelled,
    Dead,
    Failure,
    GiveUp,
    Outcome,
    Postponed,
    Reason,
    Released,
    Retry,
    Succeeded,
)
from broker_worker.registry import Registry
from broker_worker.retry import Policy
from broker_worker.sending import PayloadError

__all__ = [
    "BaseContext",
    "BrokerWorkerError",
    "CallNext",
    "Cancelled",
    "ClaimLostError",
    "Completion",
    "ConfigurationError",
    "Context",
    "Dead",
    "ErrorReport",
    "Failure",
    "GiveUp",
    "Middleware",
    "Outcome",
    "PayloadError",
    "Policy",
    "Postponed",
    "Reason",
    "Registry",
    "Released",
    "Retry",
    "StoreUnavailableError",
    "Succeeded",
    "SyncContext",
    "report_errors",
]

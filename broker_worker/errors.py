"""The errors that several parts share: one root, one sentence each."""

from __future__ import annotations


class BrokerWorkerError(Exception):
    """Root of every error that this package raises on purpose."""


class ConfigurationError(BrokerWorkerError):
    """A setting, a handler module or a command line is wrong: one line, exit 2."""


class UnavailableError(BrokerWorkerError):
    """A server cannot do its part at the moment; the same call may work later."""


class StoreUnavailableError(UnavailableError):
    """Postgres cannot be reached, or not by its rules of service (full, read-only, starting)."""


class StoreBusyError(StoreUnavailableError):
    """Another transaction holds a row for longer than we wait."""


class StoreDataError(BrokerWorkerError):
    """Postgres refused a value that we wrote; the same write will never work."""


class BrokerUnavailableError(UnavailableError):
    """RabbitMQ cannot be reached, or refused an operation for the moment."""


class PublishError(BrokerUnavailableError):
    """A message was returned, refused or not confirmed in time; it may have been sent."""


class UnsentError(PublishError):
    """A message was not even sent: no connection to publish over, or one that the broker has blocked."""


class UnpublishableError(PublishError):
    """AMQP can't carry the message; no later try will go better."""


class TopologyError(BrokerWorkerError):
    """An exchange or queue exists with other arguments than ours; the message names them."""


class SchemaError(BrokerWorkerError):
    """The database schema is missing, too old, or newer than this release can work with."""


class DeclaredDeadError(BrokerWorkerError):
    """Another worker saw this one's heartbeat stand still and took over its tasks."""


class ClaimLostError(BrokerWorkerError):
    """The attempt is not this worker's any more: its task was taken over, or ended, meanwhile."""


class CommitUnknownError(BrokerWorkerError):
    """The reply to a commit was lost: it may be done or not."""


class ChildCrashedError(BrokerWorkerError):
    """The child process of an attempt ended before the attempt did."""

"""For programs that publish tasks and ask about them: `Client` with an event loop, `SyncClient` without."""

from broker_worker.client.client import Client
from broker_worker.client.publishing import NotConfirmedError
from broker_worker.client.sync import SyncClient
from broker_worker.errors import PublishError, StoreUnavailableError
from broker_worker.sending import PayloadError
from broker_worker.store.interventions import AmbiguousTaskError, NoSuchTaskError
from broker_worker.store.status import TaskStatus
from broker_worker.task import TaskState

__all__ = [
    "AmbiguousTaskError",
    "Client",
    "NoSuchTaskError",
    "NotConfirmedError",
    "PayloadError",
    "PublishError",
    "StoreUnavailableError",
    "SyncClient",
    "TaskState",
    "TaskStatus",
]

"""A throwaway RabbitMQ and Postgres on this machine: for the demo, for tests and for development.

Needs the extra `local`. Nothing of it outlives the program that asked for it, and nothing of it belongs in
production.
"""

from __future__ import annotations

from broker_worker.local.errors import LocalServerError
from broker_worker.local.postgres import PrivatePostgres
from broker_worker.local.rabbitmq import PrivateRabbitMQ
from broker_worker.local.servers import Servers, local_servers

__all__ = ["LocalServerError", "PrivatePostgres", "PrivateRabbitMQ", "Servers", "local_servers"]

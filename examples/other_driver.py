"""The same with a driver that the worker does not know: psycopg here, Django's connection likewise.

`broker-worker dev --handlers examples.other_driver`, and with the addresses that it prints in
the environment `python -m examples.other_driver`.
"""

from __future__ import annotations

import os

import psycopg

from broker_worker import Registry, SyncContext
from broker_worker.client import SyncClient

registry = Registry()
URL = os.environ.get("SHOP_DATABASE_URL", "")  # the worker's own database


@registry.task("order.ship")
def ship(order: str, context: SyncContext) -> None:
    with psycopg.connect(URL) as connection:  # commits at its end
        connection.execute("CREATE TABLE IF NOT EXISTS shipments (order_id text)")
        connection.execute("INSERT INTO shipments (order_id) VALUES (%s)", (order,))
        completion = context.completion(result={"shipped": order})
        connection.execute(completion.sql, completion.parameters)  # last: it fences the transaction


def main() -> None:
    with SyncClient.from_environment(registry=registry) as client:
        client.publish(ship, {"order": "o-17"}, id="ship-o-17")
        print(client.wait("ship-o-17", timeout=60).result)


if __name__ == "__main__":
    main()

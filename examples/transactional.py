"""Database effects once: the handler's writes, its outcome and what it sends are one commit.

`broker-worker dev --handlers examples.transactional`, and with the addresses that it prints in
the environment `python -m examples.transactional`.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker import Context, Registry
from broker_worker.client import SyncClient

registry = Registry()


@registry.task("order.book")
async def book(order: str, amount: int, session: AsyncSession, context: Context) -> str:
    await session.execute(text("CREATE TABLE IF NOT EXISTS bookings (order_id text, amount int)"))
    await session.execute(
        text("INSERT INTO bookings (order_id, amount) VALUES (:order, :amount)"),
        {"order": order, "amount": amount},
    )
    await context.send(count_bookings, {"order": order}, id=f"count-{order}")
    return "booked"  # and commits here


@registry.task("bookings.count")
async def count_bookings(order: str, session: AsyncSession) -> int:
    found = await session.execute(
        text("SELECT count(*) FROM bookings WHERE order_id = :order"), {"order": order}
    )
    return int(found.scalar_one())


def main() -> None:
    with SyncClient.from_environment(registry=registry) as client:
        client.publish(book, {"order": "o-17", "amount": 3}, id="book-o-17")
        client.publish(book, {"order": "o-17", "amount": 3}, id="book-o-17")  # a duplicate
        print(client.wait("book-o-17", timeout=60).result)
        print(f"bookings of o-17: {client.wait('count-o-17', timeout=60).result}")


if __name__ == "__main__":
    main()

"""What a handler sends leaves with its success, or not at all. `python -m examples.sending` shows it."""

from __future__ import annotations

from broker_worker import Context, Registry
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()


@registry.task("order.book", max_attempts=2, retry_delay=1)
async def book(order: str, context: Context) -> str:
    await context.send(write_invoice, {"order": order}, id=f"invoice-{order}")
    await context.send("order.remind", {"order": order}, delay=86400)
    await context.send_event({"order": order}, exchange="shop", routing_key="order.booked")
    if context.attempt == 1:
        raise ConnectionError("nothing of the above has been sent")
    return "booked"


@registry.task("invoice.write")
async def write_invoice(order: str) -> str:
    return f"invoice of {order}"


@registry.task("order.remind")
async def remind(order: str) -> str:
    return f"{order} reminded"


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        await harness.publish(book, {"order": "o-17"})
        await harness.drain()
        for task in harness.tasks():
            print(f"{task.name}: {task.state}: {task.result}")
        for event in harness.events:
            print(f"event {event.routing_key} to {event.exchange}: {event.payload}")


if __name__ == "__main__":
    main()

"""Handlers that send. Each run is a line in the file TEST_RUNS."""

from __future__ import annotations

from broker_worker import Context, Registry, SyncContext
from tests.support.handlers import note

registry = Registry()


@registry.task("places_order")
async def places_order(exchange: str, delay: float, context: Context) -> None:
    note(context)
    await context.send(bills_order, {"order": 1}, delay=delay, id="bill-1")
    await context.send_event({"placed": 1}, exchange=exchange, routing_key="order.placed")


@registry.task("bills_order")
def bills_order(order: int, context: SyncContext) -> int:
    note(context)
    return order


@registry.task("sends_and_fails", max_attempts=1)
async def sends_and_fails(exchange: str, context: Context) -> None:
    note(context)
    await context.send(bills_order, {"order": 2}, id="bill-2")
    await context.send_event({"placed": 2}, exchange=exchange, routing_key="order.placed")
    raise RuntimeError("after sending")


@registry.task("first")
def first(context: SyncContext) -> None:
    note(context)
    context.send("second", id="second-1")


@registry.task("second")
async def second(context: Context) -> None:
    note(context)
    await context.send("third", id="third-1", queue="other")


@registry.task("third")
async def third(context: Context) -> str:
    note(context)
    return str(context.message.headers["traceparent"])


@registry.task("sends_many")
async def sends_many(count: int, context: Context) -> None:
    for number in range(count):
        await context.send(bills_order, {"order": number}, id=f"many-{number}")

"""Programs that publish, ask and wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from typing_extensions import TypedDict

from broker_worker.client import (
    Client,
    NoSuchTaskError,
    NotConfirmedError,
    PayloadError,
    SyncClient,
    TaskState,
    TaskStatus,
)

from .handlers import (
    Address,
    CheckPrime,
    Invoice,
    Parcel,
    SendMail,
    book,
    charge,
    check,
    factor,
    fetch,
    print_invoice,
    registry,
    remind,
    unpack,
    vacuum,
    weigh,
)


class Link(TypedDict):
    url: str


async def publish(client: Client) -> list[str]:
    link: Link = {"url": "https://example.org"}
    parcel: Parcel = {"weight": 2.5}
    return [
        await client.publish("email.send", {"to": "ada@example.org"}, id="ada-1", delay=5),
        await client.publish("email.send", Address("ada@example.org"), queue="mail"),
        await client.publish("table.vacuum"),
        await client.publish(vacuum),
        await client.publish(vacuum, not_after=datetime.now(UTC), headers={"tenant": "shop"}),
        await client.publish(charge, Invoice(number="1", cents=5), delay=timedelta(hours=1)),
        await client.publish(charge, {"number": "1", "cents": 5}, correlation_id="order-1"),
        await client.publish(remind, Invoice(number="1", cents=5)),
        await client.publish(print_invoice, Invoice(number="1", cents=5)),
        await client.publish(fetch, {"url": "https://example.org"}),
        await client.publish(fetch, link),
        await client.publish(unpack, {"path": "/tmp", "depth": 3}),
        await client.publish(factor, {"number": 7}, not_after=60),
        await client.publish(check, {"url": "https://example.org"}),
        await client.publish(book, {"order": "1", "amount": 5}),
        await client.publish(weigh, parcel),
        await client.publish(weigh, {"weight": 2.5}),
        await client.publish(SendMail, Address("ada@example.org"), id=None),
        await client.publish(SendMail, {"to": "ada@example.org"}),
        await client.publish(CheckPrime, {"number": 7}),
    ]


def publish_from_a_thread(client: SyncClient) -> list[str]:
    return [
        client.publish("table.vacuum"),
        client.publish(vacuum),
        client.publish(charge, Invoice(number="1", cents=5), delay=timedelta(hours=1)),
        client.publish(charge, {"number": "1", "cents": 5}),
        client.publish(print_invoice, Invoice(number="1", cents=5)),
        client.publish(remind, Invoice(number="1", cents=5)),
        client.publish(unpack, {"path": "/tmp", "depth": 3}),
        client.publish(SendMail, Address("ada@example.org")),
        client.publish(CheckPrime, {"number": 7}),
    ]


async def ask(client: Client) -> str:
    status = await client.status("ada-1", queue="mail", name="email.send")
    if status is None:
        return "not known"
    if status.state is TaskState.RUNNING and status.progress is not None:
        return f"{status.progress:.0%} {status.progress_note or ''}"
    ended: TaskStatus = await client.wait("ada-1", timeout=timedelta(minutes=1))
    took = ended.finished_at - ended.created_at if ended.finished_at else None
    return f"{ended.has_succeeded} {ended.result} {ended.reason} {took}"


def ask_from_a_thread(client: SyncClient) -> bool:
    status = client.status("ada-1")
    if status is not None and status.has_ended:
        return status.has_succeeded
    return client.wait("ada-1", timeout=60).has_succeeded


async def main() -> None:
    async with Client.from_environment(registry=registry, queue="mail") as client:
        try:
            await publish(client)
        except NotConfirmedError as error:
            await client.publish(vacuum, id=error.id)
        except PayloadError as error:
            print(error)
        try:
            is_done: bool = await client.cancel("ada-1", actor="ada")
        except NoSuchTaskError:
            is_done = False
        print(await ask(client), is_done)


def main_from_a_thread() -> None:
    with SyncClient(amqp_url="amqp://", database_url="postgresql://", registry=registry) as client:
        print(publish_from_a_thread(client), ask_from_a_thread(client), client.cancel("ada-1"))

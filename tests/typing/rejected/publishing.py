"""Mistakes of programs that publish, ask and wait."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from broker_worker import Context, Registry, SyncContext
from broker_worker.client import Client, SyncClient

registry = Registry()


class Invoice(BaseModel):
    number: str


@dataclass
class Address:
    to: str


@registry.task("invoice.charge")
async def charge(invoice: Invoice) -> None: ...


@registry.task("invoice.remind")
def remind(context: SyncContext, invoice: Invoice) -> None: ...


@registry.task("page.fetch")
async def fetch(url: str) -> None: ...


@registry.task("mail.send")
class SendMail:
    async def run(self, address: Address, context: Context) -> None: ...


@registry.task("table.vacuum")
async def vacuum(context: Context) -> None: ...


async def publish(client: Client) -> None:
    await client.publish(charge, Address("ada"))  # E: mypy[arg-type] pyright[reportCallIssue, reportArgumentType]
    await client.publish(remind, Address("ada"))  # E: mypy[arg-type] pyright[reportCallIssue, reportArgumentType]
    await client.publish(SendMail, Invoice(number="1"))  # E: mypy[misc] pyright[reportCallIssue, reportArgumentType]
    await client.publish(charge)  # E: mypy[arg-type] pyright[reportCallIssue, reportArgumentType]
    await client.publish(fetch)  # E: mypy[arg-type] pyright[reportCallIssue, reportArgumentType]
    await client.publish(fetch, "/")  # E: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
    await client.publish(fetch, ["/"])  # E: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
    await client.publish(vacuum, 5)  # E: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
    await client.publish(5, {})  # E: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
    await client.publish("page.fetch", {}, delay="1s")  # E: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
    await client.publish("page.fetch", {}, queues="mail")  # E: mypy[call-overload] pyright[reportCallIssue]
    await client.publish(charge, Invoice(number="1"), id=5)  # E: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
    client.publish(charge, Invoice(number="1"))  # E: mypy[unused-coroutine] pyright[reportUnusedCoroutine]
    client.wait("ada-1")  # E: mypy[unused-coroutine] pyright[reportUnusedCoroutine]


def publish_from_a_thread(client: SyncClient) -> None:
    client.publish(charge, Address("ada"))  # E: mypy[arg-type] pyright[reportCallIssue, reportArgumentType]
    client.publish(SendMail, Invoice(number="1"))  # E: mypy[misc] pyright[reportCallIssue, reportArgumentType]
    client.publish(fetch, "/")  # E: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]


async def ask(client: Client, sync_client: SyncClient) -> str:
    status = await client.status("ada-1")
    print(status.state)  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]
    print(sync_client.status("ada-1").result)  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]
    ended = await client.wait("ada-1", timeout="1s")  # E: mypy[arg-type] pyright[reportArgumentType]
    print(ended.finished_at.isoformat())  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]
    await client.cancel(5)  # E: mypy[arg-type] pyright[reportArgumentType]
    return ended.reason  # E: mypy[return-value] pyright[reportReturnType]


async def open_it() -> None:
    Client("amqp://")  # E: mypy[call-arg] pyright[reportCallIssue]
    Client(registry=vacuum)  # E: mypy[arg-type] pyright[reportArgumentType]
    SyncClient(urls="amqp://")  # E: mypy[call-arg] pyright[reportCallIssue]

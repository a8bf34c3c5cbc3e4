"""Handlers of every kind, as a user writes them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypedDict

from broker_worker import (
    BaseContext,
    CallNext,
    Context,
    ErrorReport,
    GiveUp,
    Outcome,
    Policy,
    Registry,
    Retry,
    SyncContext,
    report_errors,
)

registry = Registry()


class RateLimitedError(Exception):
    pass


class Invoice(BaseModel):
    number: str
    cents: int


@dataclass
class Address:
    to: str


class Parcel(TypedDict):
    weight: float


class Page:
    def __init__(self, url: str) -> None:
        self.url = url


class Mailbox:
    async def send(self, to: str) -> bool:
        return bool(to)


class Postman:
    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox


# --- the ways to run ---------------------------------------------------------------------


@registry.task("page.fetch", timeout=20, deadline=timedelta(hours=1))
async def fetch(url: str, context: Context) -> str:
    context.log.info("fetching", extra=dict(context.log_fields()))
    await context.progress(0.4, "400 of 1000")
    return url


@registry.task("archive.unpack", timeout=timedelta(minutes=5))
def unpack(path: str, context: SyncContext, *, depth: int = 1) -> int:
    for done in range(depth):
        context.raise_if_cancelled()
        context.progress(done / depth)
        context.checkpoint({"done": done})
    return 0 if context.is_cancelled else depth


@registry.task("number.factor", process=True, memory_limit=512 * 2**20)
def factor(number: int) -> bool:
    return number % 2 == 0


@registry.task("mail.send", default_for=["mail", "letters"])
class SendMail:
    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    async def run(self, address: Address, context: Context) -> bool:
        return await self.mailbox.send(address.to) or context.attempt == context.max_attempts


@registry.task("prime.check", process=True)
class CheckPrime:
    def run(self, number: int) -> bool:
        return number == 2


@registry.task("parcel.weigh", default_for="parcels")
def weigh(parcel: Parcel) -> float:
    return parcel["weight"]


@registry.task("table.vacuum")
async def vacuum(context: Context) -> None:
    context.log.info("vacuuming for %s", context.task_id)


# --- failing -----------------------------------------------------------------------------


@registry.task(
    "invoice.charge",
    max_attempts=8,
    retry_delay=10,
    retry_max_delay=timedelta(minutes=10),
    retry_jitter=0.5,
    give_up_on=(ValueError, KeyError),
    policies={
        RateLimitedError: Policy(max_attempts=50, delay=60, max_delay=timedelta(minutes=1), jitter=0.1)
    },
)
async def charge(invoice: Invoice) -> int:
    if invoice.cents < 0:
        raise GiveUp("a negative amount")
    if invoice.cents > 10_000:
        raise Retry("later", delay=30)
    if invoice.cents > 1_000:
        raise Retry(delay=timedelta(minutes=1))
    return invoice.cents


@registry.task("invoice.remind", retry_on=RateLimitedError, give_up_on=[ValueError])
async def remind(context: Context, invoice: Invoice) -> None:
    if context.may_be_repeat:
        raise Retry


@registry.task("invoice.print")
def print_invoice(context: SyncContext, invoice: Invoice) -> None:
    context.log.info("printing %s", invoice.number)


# --- what a context does -----------------------------------------------------------------


@registry.task("report.write")
async def report(rows: int, context: Context) -> int:
    begun: int = (context.saved or {"row": 0})["row"]
    address = context.saved_as(Address)
    for row in range(begun, rows):
        await context.checkpoint({"row": row})
    task_id = await context.send(charge, Invoice(number="1", cents=5), delay=timedelta(days=1))
    await context.send(SendMail, {"to": address.to if address else "ada@example.org"}, queue="mail")
    await context.send("page.fetch", {"url": task_id}, id="page-1", delay=2.5)
    await context.send(vacuum)
    await context.send_event({"rows": rows}, exchange="shop", routing_key="report.written")
    return rows - begun


@registry.task("order.ship")
def ship(order: str, context: SyncContext) -> None:
    address = context.saved_as(Address)
    if address is None:
        context.checkpoint(Address("ada@example.org"))
    sent: str = context.send(fetch, {"url": order}, queue="pages", delay=1, id="page-2")
    context.send_event(Invoice(number=sent, cents=1), exchange="shop", routing_key="order.shipped")


@registry.task("order.settle")
def settle(order: str, context: SyncContext) -> None:
    completion = context.completion(result={"settled": order})
    statement: str = completion.sql
    parameters: tuple[object, ...] = completion.parameters
    context.log.info("%s %s", statement, parameters)


@registry.task("order.book")
async def book(order: str, amount: int, session: AsyncSession, context: Context) -> None:
    await session.execute(
        text("INSERT INTO bookings VALUES (:order, :amount)"), {"order": order, "amount": amount}
    )
    await context.send(settle, {"order": order})


# --- resources ---------------------------------------------------------------------------


@registry.resource
async def mailbox() -> AsyncIterator[Mailbox]:
    yield Mailbox()


@registry.resource
async def postman(mailbox: Mailbox) -> AsyncGenerator[Postman, None]:
    yield Postman(mailbox)


@registry.resource
@asynccontextmanager
async def page() -> AsyncGenerator[Page, None]:
    yield Page("https://example.org")


@registry.task("page.check")
async def check(url: str, page: Page, postman: Postman) -> bool:
    return page.url == url and await postman.mailbox.send(url)


# --- around every attempt ----------------------------------------------------------------


@registry.middleware
async def timed(context: BaseContext, call_next: CallNext) -> Outcome:
    outcome = await call_next()
    logging.getLogger("timing").info("%s attempt %s: %s", context.name, context.attempt, outcome)
    return outcome


class Counting:
    def __init__(self) -> None:
        self.attempts = 0

    async def __call__(self, context: BaseContext, call_next: CallNext) -> Outcome:
        self.attempts += 1
        return await call_next()


counting = registry.middleware(Counting())


def attempts_so_far() -> int:
    return counting.attempts  # as a decorated function, it is what it was


async def report_later(report: ErrorReport) -> None:
    logging.getLogger("errors").error("%s %s", report.failure.error_type, report.is_final)


registry.middleware(report_errors(lambda report: print(report.context.task_id, report.error)))
registry.middleware(report_errors(report_later))


@registry.decoder("application/x-lines")
def decode_lines(body: bytes) -> list[str]:
    return body.decode().splitlines()


@registry.decoder("application/x-pairs")
def decode_pairs(body: bytes) -> object:
    return json.loads(body)


def everything(*parts: Registry) -> Registry:
    whole = Registry()
    for part in parts:
        whole.include(part)
    return whole

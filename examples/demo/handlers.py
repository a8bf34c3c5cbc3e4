"""The work, as a user of broker_worker writes it: plain functions and environment variables.

A handler runs at least once, so each of these may be repeated without harm: files
get the name of their task, rows have the task's id as primary key, and mails and
webhooks carry it, so that the receiver knows a repeat when it sees one.
"""

from __future__ import annotations

import asyncio
import html
import os
import smtplib
import urllib.request
from dataclasses import dataclass
from datetime import date
from email.message import EmailMessage
from pathlib import Path

import asyncpg
from PIL import Image
from pydantic import BaseModel, Field

from broker_worker import Context, GiveUp, Registry, Retry, SyncContext

registry = Registry()


class Settings:
    """Where the handlers find the rest of the world."""

    folder = Path(os.environ.get("DEMO_FOLDER", "."))
    database_url = os.environ.get("DEMO_DATABASE_URL", "")
    smtp = os.environ.get("DEMO_SMTP", "127.0.0.1:25")
    webhook_url = os.environ.get("DEMO_WEBHOOK_URL", "")


# --- images: plain functions, so they run in threads -------------------------------------------------


@dataclass
class Thumbnail:
    """A result: anything that pydantic can turn into JSON."""

    file: str
    width: int
    height: int


@registry.task("thumbnail.make", max_attempts=3, timeout=20)
def make_thumbnail(image: str, width: int, context: SyncContext) -> Thumbnail:
    """Scale one image of the folder `images` down to `width` pixels."""
    target = Settings.folder / "thumbnails" / f"{context.task_id}.jpg"
    with Image.open(Settings.folder / "images" / image) as picture:
        picture.thumbnail((width, picture.height))
        save_whole(picture.convert("RGB"), target)
        return Thumbnail(file=target.name, width=picture.width, height=picture.height)


def save_whole(picture: Image.Image, target: Path) -> None:
    """Leave a whole file or none, whatever crashes."""
    partial = target.with_suffix(".partial")
    picture.save(partial, "JPEG", quality=85)
    partial.replace(target)


# --- rows and reports: coroutines ---------------------------------------------------------------------


class Sale(BaseModel):
    """One row of the CSV file. What does not look like this never reaches the handler."""

    order: str
    region: str
    sold_on: date
    cents: int = Field(gt=0)


@registry.task("sales.import_row", max_attempts=5)
async def import_row(sale: Sale, context: Context) -> None:
    """Write one row, once."""
    async with (await pool()).acquire() as connection:
        await connection.execute(
            "INSERT INTO demo.sales (task_id, order_number, region, sold_on, cents)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (task_id) DO NOTHING",
            context.task_id,
            sale.order,
            sale.region,
            sale.sold_on,
            sale.cents,
        )


class Report(BaseModel):
    """What a report says in short."""

    file: str
    rows: int
    cents: int


@registry.task("report.render", max_attempts=60)
async def render_report(region: str, rows: int, context: Context) -> Report:
    """Render the sales of a region; come again while some of its `rows` are still on their way."""
    async with (await pool()).acquire() as connection:
        sales = await connection.fetch(
            "SELECT order_number, sold_on, cents FROM demo.sales WHERE region = $1 ORDER BY order_number",
            region,
        )
    if len(sales) < rows:
        raise Retry(f"{len(sales)} of {rows} rows are there", delay=1)
    cents = sum(sale["cents"] for sale in sales)
    target = Settings.folder / "reports" / f"{context.task_id}.html"
    target.write_text(report_page(region, sales, cents))
    return Report(file=target.name, rows=len(sales), cents=cents)


def report_page(region: str, sales: list[asyncpg.Record], cents: int) -> str:
    """Write the page."""
    lines = "\n".join(
        f"<tr><td>{html.escape(sale['order_number'])}<td>{sale['sold_on']}<td>{sale['cents'] / 100:.2f}"
        for sale in sales
    )
    return (
        f"<!doctype html>\n<title>{html.escape(region)}</title>\n<h1>Sales in {html.escape(region)}</h1>\n"
        f"<table>\n{lines}\n<tfoot><tr><td>{len(sales)} orders<td><td>{cents / 100:.2f}\n</table>\n"
    )


_pool: asyncpg.Pool | None = None
_pool_lock = asyncio.Lock()


async def pool() -> asyncpg.Pool:
    """One small pool for all rows, opened by the first one."""
    global _pool  # noqa: PLW0603 - one per process, like the process itself
    async with _pool_lock:
        if _pool is None:
            _pool = await asyncpg.create_pool(Settings.database_url, min_size=1, max_size=4)
    return _pool


# --- the outside world ----------------------------------------------------------------------------------


@registry.task("email.send", max_attempts=5, timeout=10)
def send_email(to: str, subject: str, text: str, context: SyncContext) -> None:
    """Hand one mail to the mail server. The same task is the same Message-ID."""
    mail = EmailMessage()
    mail["Message-ID"] = f"<{context.task_id}@demo.example>"
    mail["From"], mail["To"], mail["Subject"] = "shop@demo.example", to, subject
    mail.set_content(text)
    host, _, port = Settings.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), local_hostname="localhost", timeout=5) as server:
        server.send_message(mail)


@registry.task("webhook.call", max_attempts=12, timeout=10)
def call_webhook(event: str, order: str, context: SyncContext) -> int:
    """Tell the receiver about an order. Its 503s are errors like any other: the policy decides."""
    request = urllib.request.Request(
        Settings.webhook_url,
        data=f'{{"event": "{event}", "order": "{order}"}}'.encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": context.task_id},
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        return int(response.status)


# --- what goes wrong -------------------------------------------------------------------------------------


class PaymentRefusedError(Exception):
    """The bank said no, and will say so again."""


@registry.task("invoice.charge", max_attempts=3)
async def charge_invoice(invoice: str) -> None:
    """Fail, always: three attempts, then a dead letter."""
    raise PaymentRefusedError(f"the bank refuses {invoice[:3]}…")


@registry.task("invoice.refund")
async def refund_invoice(invoice: str) -> None:
    """Know that another attempt is of no use."""
    raise GiveUp(f"{invoice[:3]}… was never paid")


@registry.task("search.reindex", max_attempts=2, timeout=0.5)
async def reindex_search(index: str) -> str:
    """Take longer than allowed, twice."""
    await asyncio.sleep(3600)
    return index

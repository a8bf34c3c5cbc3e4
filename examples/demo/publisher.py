"""Publishes the demo's tasks with a plain AMQP client; of broker_worker it knows the message contract.

Run it as a program of its own. It declares nothing: it publishes to the exchange `bw.tasks` with the
queue's name as the routing key, mandatory and confirmed, and then prints as JSON what it published.

Environment: DEMO_AMQP_URL, DEMO_FOLDER (holds images/ and sales.csv), and perhaps DEMO_MANAGEMENT_URL.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import os
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractExchange

EXCHANGE = "bw.tasks"
WIDTHS = (160, 320, 640)
EMAILS = 60
WEBHOOKS = 30


@dataclass
class Task:
    """One message. `kind` is what the accounting later calls it; it does not travel."""

    kind: str
    queue: str
    type: str | None
    id: str | None
    payload: dict[str, object] = field(default_factory=dict)
    body: bytes | None = None  # instead of the payload's JSON
    properties: dict[str, object] = field(default_factory=dict)


def all_tasks(folder: Path) -> Iterator[Task]:
    """Everything that gets published, in this order."""
    yield from hopeless()
    yield from late()
    yield from webhooks()
    yield from thumbnails(folder)
    rows = list(sales(folder))
    yield from rows
    yield from reports(rows)
    emails = list(mails())
    yield from emails
    yield from duplicates([*rows[:2], *emails[:4]])
    yield from conflict()


def thumbnails(folder: Path) -> Iterator[Task]:
    """Three sizes of every image."""
    for path in sorted((folder / "images").iterdir()):
        for width in WIDTHS:
            payload: dict[str, object] = {"image": path.name, "width": width}
            yield Task("thumbnail", "media", "thumbnail.make", f"{path.stem}-{width}", payload)


def sales(folder: Path) -> Iterator[Task]:
    """One task per row of the file, whatever the row looks like."""
    with (folder / "sales.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            is_good = row["cents"].isdigit()
            payload: dict[str, object] = {**row, "cents": int(row["cents"]) if is_good else row["cents"]}
            yield Task(
                "row" if is_good else "invalid",
                "default",
                "sales.import_row",
                f"sale-{row['order']}",
                payload,
            )


def reports(rows: list[Task]) -> Iterator[Task]:
    """A report for each region, asked for before its rows are there."""
    count_by_region = Counter(str(row.payload["region"]) for row in rows if row.kind == "row")
    for region, count in sorted(count_by_region.items()):
        payload: dict[str, object] = {"region": region, "rows": count}
        yield Task("report", "default", "report.render", f"report-{region}", payload)


def mails() -> Iterator[Task]:
    """Mails to customers."""
    for number in range(EMAILS):
        yield mail(f"mail-{number:03}", number)


def mail(task_id: str | None, number: int) -> Task:
    """One of them."""
    payload: dict[str, object] = {
        "to": f"customer{number}@demo.example",
        "subject": "Your order",
        "text": f"Thank you for order A{number:05}.",
    }
    return Task("email" if task_id else "no_id", "email", "email.send", task_id, payload)


def webhooks() -> Iterator[Task]:
    """Calls to a receiver that is down when the demo begins."""
    for number in range(WEBHOOKS):
        payload: dict[str, object] = {"event": "order.paid", "order": f"A{number:05}"}
        yield Task("webhook", "webhook", "webhook.call", f"hook-{number:03}", payload)


def hopeless() -> Iterator[Task]:
    """What can't be done, each for a reason of its own."""
    for number in range(3):
        yield Task("failing", "default", "invoice.charge", f"charge-{number}", {"invoice": f"2026-{number}"})
    for number in range(2):
        yield Task(
            "giving_up", "default", "invoice.refund", f"refund-{number}", {"invoice": f"2026-{number}"}
        )
        yield Task("too_slow", "default", "search.reindex", f"reindex-{number}", {"index": "orders"})
        yield Task("unknown", "default", "fax.send", f"fax-{number}", {"to": "+49 30 0000000"})
    yield Task("malformed", "email", "email.send", "cut-off", body=b'{"to": "customer1@demo.exam')
    yield Task("malformed", "email", "email.send", "zipped", properties={"content_encoding": "gzip"})
    yield Task("nameless", "default", None, "who-am-i")
    yield Task("oversize", "email", "email.send", "attachment", {"text": "x" * 100_000})
    yield Task("unroutable", "letterbox", "email.send", "wrong-queue")


def late() -> Iterator[Task]:
    """What nobody wants any more by the time it arrives."""
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    payload = mail("", 0).payload
    yield Task(
        "expired",
        "email",
        "email.send",
        "late-0",
        payload,
        properties={"headers": {"not-after": an_hour_ago}},
    )
    published = {"timestamp": an_hour_ago, "expiration": timedelta(minutes=1)}
    yield Task("expired", "email", "email.send", "late-1", payload, properties=dict(published))


def duplicates(tasks: list[Task]) -> Iterator[Task]:
    """The same messages once more, as a publisher sends them that missed the confirm."""
    for task in tasks:
        yield Task("duplicate", task.queue, task.type, task.id, task.payload)


def conflict() -> Iterator[Task]:
    """Another message under an id that is taken."""
    yield Task(
        "conflict", "email", "email.send", "mail-000", {**mail("", 0).payload, "text": "Something else."}
    )


async def publish(exchange: AbstractExchange, task: Task) -> None:
    """Return when the broker has it; raise if it has not."""
    body = json.dumps(task.payload).encode() if task.body is None else task.body
    properties: dict[str, object] = {"content_type": "application/json", **task.properties}
    message = aio_pika.Message(
        body,
        type=task.type,
        message_id=task.id,
        app_id="demo-publisher",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        **properties,  # type: ignore[arg-type]  # names and types of aio_pika.Message
    )
    await exchange.publish(message, routing_key=task.queue, mandatory=True)


def publish_without_id(management_url: str, task: Task) -> None:
    """Publish as curl does, over RabbitMQ's HTTP API, where a message has no id unless one is given."""
    address = urllib.parse.urlsplit(management_url)
    request = urllib.request.Request(
        f"http://{address.hostname}:{address.port}/api/exchanges/%2F/{EXCHANGE}/publish",
        data=json.dumps(
            {
                "properties": {"type": task.type, "delivery_mode": 2},
                "routing_key": task.queue,
                "payload": json.dumps(task.payload),
                "payload_encoding": "string",
            }
        ).encode(),
        headers={"Content-Type": "application/json"},
    )
    credentials = f"{address.username}:{urllib.parse.unquote(address.password or '')}"
    request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=10) as response:
        if not json.load(response)["routed"]:
            raise RuntimeError(f"{task.queue}: nobody takes this")


async def main() -> None:
    """Publish everything, then say what it was."""
    published: list[Task] = []
    connection = await aio_pika.connect(os.environ["DEMO_AMQP_URL"])
    async with connection, connection.channel(publisher_confirms=True) as channel:
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        for task in all_tasks(Path(os.environ["DEMO_FOLDER"])):
            await publish(exchange, task)
            published.append(task)
    if management_url := os.environ.get("DEMO_MANAGEMENT_URL"):
        for number in range(5):
            task = mail(None, number)
            await asyncio.to_thread(publish_without_id, management_url, task)
            published.append(task)
    said = [asdict(task) for task in published]
    for each in said:
        del each["body"], each["properties"]
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())

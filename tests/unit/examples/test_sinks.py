from __future__ import annotations

import asyncio
import smtplib
import urllib.error
import urllib.request
from email.message import EmailMessage

from examples.demo.sinks import Mailbox, Receiver, mail_server, webhook_server


def send(address: str, task_id: str) -> None:
    mail = EmailMessage()
    mail["Message-ID"] = f"<{task_id}@demo.example>"
    mail.set_content("Hello")
    host, port = address.split(":")
    with smtplib.SMTP(host, int(port), local_hostname="localhost") as server:
        server.send_message(mail, "from@demo.example", "to@demo.example")


def call(url: str, key: str) -> int:
    request = urllib.request.Request(url, data=b"{}", headers={"Idempotency-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


async def test_the_mail_server_counts_mails_by_task() -> None:
    mailbox = Mailbox()

    async with mail_server(mailbox) as address:
        for task_id in ("a", "b", "a"):
            await asyncio.to_thread(send, address, task_id)

    assert mailbox.count_by_id == {"a": 2, "b": 1}


def test_webhooks_are_refused_during_the_outage() -> None:
    receiver = Receiver(outage=3600)

    with webhook_server(receiver) as url:
        status = call(url, "a")

    assert (status, receiver.refused, receiver.count_by_id) == (503, 1, {})


def test_webhooks_are_taken_in_afterwards() -> None:
    receiver = Receiver(outage=0)

    with webhook_server(receiver) as url:
        statuses = [call(url, key) for key in ("a", "b")]

    assert (statuses, receiver.count_by_id) == ([200, 200], {"a": 1, "b": 1})

"""Tasks published by a program with an event loop."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker_worker.client import Client, NotConfirmedError, PayloadError, TaskState
from broker_worker.errors import BrokerWorkerError, ConfigurationError
from tests.e2e.conftest import Service
from tests.integration.client.conftest import (
    Mail,
    PrintMail,
    Rabbit,
    count_mails,
    registry,
    send_mail,
    sweep,
    unregistered,
)
from tests.support.management import Control


async def test_a_published_task_is_in_its_queue_when_publish_returns(rabbit: Rabbit) -> None:
    async with rabbit.client() as client:
        task_id = await client.publish(
            "report", {"year": 2026}, headers={"tenant-id": "a"}, correlation_id="c-1"
        )

        [task] = await rabbit.received()

    assert (task.name, task.payload, task.correlation_id) == ("report", {"year": 2026}, "c-1")
    assert task.headers == {"bw-task-id": task_id, "tenant-id": "a"}


async def test_times_are_told_as_moments(rabbit: Rabbit) -> None:
    before = datetime.now(UTC)
    async with rabbit.client() as client:
        await client.publish("report", id="t-1", delay=timedelta(hours=1), not_after=7200)

        [task] = await rabbit.received()

    wait = datetime.fromisoformat(task.headers["deliver-at"]) - before
    limit = datetime.fromisoformat(task.headers["not-after"]) - before
    assert timedelta(hours=1) <= wait < limit - timedelta(minutes=59)
    assert limit >= timedelta(hours=2)


async def test_a_moment_that_is_given_is_kept(rabbit: Rabbit) -> None:
    moment = datetime(2126, 1, 31, 12, tzinfo=UTC)
    async with rabbit.client() as client:
        await client.publish("report", not_after=moment)

        [task] = await rabbit.received()

    assert task.headers["not-after"] == "2126-01-31T12:00:00+00:00"
    assert "deliver-at" not in task.headers


async def test_a_handler_gives_its_task_a_name(rabbit: Rabbit) -> None:
    async with rabbit.client() as client:
        await client.publish(send_mail, Mail(to="ada"))
        await client.publish(sweep)
        await client.publish(count_mails, {"folder": "in"})
        await client.publish(PrintMail, Mail(to="ada", copies=2))

        tasks = await rabbit.received()

    assert [(task.name, task.payload) for task in tasks] == [
        ("mail.send", {"to": "ada", "copies": 1}),
        ("mail.sweep", {}),
        ("mail.count", {"folder": "in"}),
        ("mail.print", {"to": "ada", "copies": 2}),
    ]


@pytest.mark.parametrize(
    "payload", [{"to": 5}, {"copies": 1}, {}, {"to": float("nan")}, {"to": object()}], ids=range(5)
)
async def test_a_payload_that_its_handler_would_refuse_does_not_leave(
    rabbit: Rabbit, payload: dict[str, object]
) -> None:
    async with rabbit.client() as client:
        with pytest.raises(PayloadError):
            await client.publish(send_mail, payload)

    assert await rabbit.received() == []


async def test_a_wrong_payload_is_told_in_one_line(rabbit: Rabbit) -> None:
    async with rabbit.client() as client:
        with pytest.raises(PayloadError) as raised:
            await client.publish(send_mail, {"to": "ada", "copies": "many"})

    assert str(raised.value).startswith("not a payload of 'mail.send': ")
    assert "copies" in str(raised.value)
    assert "many" not in str(raised.value)


async def test_a_handler_that_the_registry_does_not_know_is_refused(rabbit: Rabbit) -> None:
    async with rabbit.client() as client:
        with pytest.raises(ConfigurationError, match=r"conftest\.unregistered is not a task of the client's"):
            await client.publish(unregistered, Mail(to="ada"))


async def test_a_handler_needs_a_registry() -> None:
    async with Client(amqp_url="amqp://127.0.0.1:1/") as client:
        with pytest.raises(
            ConfigurationError, match="give that to the client, or publish by the task's name"
        ):
            await client.publish(send_mail, Mail(to="ada"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"id": ""}, "the task id is empty"),
        ({"id": "x" * 201}, "the task id has 201 characters"),
        ({"id": "\0"}, "can't be stored"),
        ({"headers": {"bw-epoch": 7}}, "'bw-epoch' is a header that publishers can't set"),
        ({"headers": {"CC": "q"}}, "'CC' is a header"),
        ({"headers": {"deliver-at": "now"}}, "'deliver-at' is a header"),
        ({"headers": {"h": "x" * 70_000}}, "the headers have"),
        ({"delay": -1}, "the delay of a task is not negative"),
        ({"not_after": datetime(2026, 1, 1)}, "without a time zone"),  # noqa: DTZ001 - that is the mistake
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_would_break_the_message_contract_does_not_leave(
    rabbit: Rabbit, options: dict[str, Any], text: str
) -> None:
    async with rabbit.client() as client:
        with pytest.raises(ValueError, match=text):
            await client.publish("report", **options)

    assert await rabbit.received() == []


async def test_a_queue_that_no_one_declared_is_refused_with_the_task_s_id(rabbit: Rabbit) -> None:
    async with rabbit.client() as client:
        with pytest.raises(NotConfirmedError, match=r"there is no queue .*\.q\.emial") as raised:
            await client.publish("report", id="t-1", queue="emial")

    assert raised.value.id == "t-1"


async def test_a_queue_that_can_not_be_is_refused(rabbit: Rabbit) -> None:
    async with rabbit.client() as client:
        with pytest.raises(ConfigurationError, match="can't be the name of a queue"):
            await client.publish("report", queue="a.b")


async def test_a_queue_is_looked_for_again_after_a_failure(rabbit: Rabbit) -> None:
    async with rabbit.client(queue="late") as client:
        with pytest.raises(NotConfirmedError):
            await client.publish("report")
        await rabbit.declare("late")

        await client.publish("report")

    assert len(await rabbit.received("late")) == 1


async def test_a_queue_that_went_away_is_noticed_by_the_publish_after_the_one_that_failed(
    rabbit: Rabbit,
) -> None:
    async with rabbit.client() as client:
        await client.publish("report")
        await rabbit.delete("default")

        with pytest.raises(NotConfirmedError, match="returned by the broker"):
            await client.publish("report")
        with pytest.raises(NotConfirmedError, match="there is no queue"):
            await client.publish("report")


async def test_many_publish_at_once_over_one_connection(rabbit: Rabbit, control: Control) -> None:
    async with rabbit.client() as client:
        ids = await asyncio.gather(*(client.publish("report", number) for number in range(500)))

        names = await control.client_names()

    assert sorted(task.headers["bw-task-id"] for task in await rabbit.received()) == sorted(ids)
    assert names.count("broker_worker client publish") == 1


async def test_a_lost_connection_is_made_again(rabbit: Rabbit, control: Control) -> None:
    async with rabbit.client() as client:
        await client.publish("report", id="t-1")
        await control.close_connections()

        for _ in range(100):  # the loss may be noticed by a publish, which then says that it is not sure
            try:
                await client.publish("report", id="t-2")
                break
            except NotConfirmedError:
                continue

    assert {task.headers["bw-task-id"] for task in await rabbit.received()} == {"t-1", "t-2"}


async def test_a_broker_that_is_away_is_told_after_the_time_that_was_given() -> None:
    async with Client(amqp_url="amqp://127.0.0.1:1/", publish_timeout=0.5) as client:
        with pytest.raises(NotConfirmedError, match=r"task 't-1' was not confirmed: 127\.0\.0\.1:1: "):
            await client.publish("report", id="t-1")


async def test_an_unusable_url_is_told_at_once() -> None:
    async with Client(amqp_url="http://127.0.0.1/") as client:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="not an AMQP URL"):
                await client.publish("report")


async def test_a_closed_client_says_so(rabbit: Rabbit) -> None:
    async with rabbit.client() as client:
        await client.publish("report")

    with pytest.raises(BrokerWorkerError, match="the client is closed"):
        await client.publish("report")


async def test_a_daemon_runs_what_was_published_and_the_client_gets_its_result(service: Service) -> None:
    await asyncio.to_thread(service.start)
    async with Client(
        amqp_url=service.amqp_url,
        database_url=service.database_url,
        direct_url=service.database_url,
        prefix=service.prefix,
    ) as client:
        task_id = await client.publish("double", {"x": 21})

        status = await client.wait(task_id, timeout=50)

    assert (status.state, status.result, status.attempt) == (TaskState.SUCCEEDED, 42, 1)


def test_the_registry_of_these_tests_can_be_used() -> None:
    assert len(registry.handlers) == 4

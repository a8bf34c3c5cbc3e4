from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta

import pytest

from broker_worker.amqp.channel import open_channel, plain_channel
from broker_worker.amqp.connection import Link, connected
from broker_worker.amqp.consumer import Consumption, Subscription
from broker_worker.amqp.declaration import Problem, declare, verify
from broker_worker.amqp.topology import Topology
from broker_worker.errors import TopologyError
from broker_worker.task import Poisoning
from tests.integration.amqp.conftest import Service, declare_for
from tests.support.management import Control
from tests.support.services import Broker

Start = Callable[..., Service]


async def make_queue(url: str, name: str, arguments: dict[str, object]) -> None:
    async with connected(url, "test make") as connection:
        channel = await open_channel(connection.wire, plain_channel)
        await channel.queue_declare(name, durable=True, arguments=arguments)  # type: ignore[arg-type]


async def test_declaring_makes_everything_once(broker: Broker, topology: Topology) -> None:
    async with connected(broker.url, "test") as connection:
        first = await declare(connection, topology)
        second = await declare(connection, topology)

    assert f"queue {topology.work_queue('default')}" in first
    assert f"exchange {topology.tasks_exchange}" in first
    assert second == []


async def test_a_differing_queue_is_named_with_both_values_and_left_alone(
    broker: Broker, topology: Topology
) -> None:
    await make_queue(
        broker.url, topology.delay(timedelta(seconds=1)), {"x-queue-type": "quorum", "x-message-ttl": 77}
    )

    async with connected(broker.url, "test") as connection:
        with pytest.raises(TopologyError) as caught:
            await declare(connection, topology)

    text = str(caught.value)
    assert "\n" not in text
    for part in (topology.delay(timedelta(seconds=1)), "x-", "ours is"):
        assert part in text


async def test_a_classic_queue_in_the_place_of_ours_is_named(broker: Broker, topology: Topology) -> None:
    await make_queue(broker.url, topology.work_queue("default"), {})

    async with connected(broker.url, "test") as connection:
        with pytest.raises(TopologyError, match=r"queue \S+\.q\.default exists and has x-\S+ \w+, ours is"):
            await declare(connection, topology)


async def test_a_daemon_that_meets_a_differing_queue_ends(
    broker: Broker, declared: Topology, serve: Start
) -> None:
    other = Topology(broker.prefix, ["default", "second"], rungs=(timedelta(seconds=1),))
    await make_queue(broker.url, other.work_queue("second"), {})

    consumption = Consumption(
        Link("consume", lambda: broker.url, lambda _: None),
        other,
        [Subscription("default", other.work_queue("default"), 1)],
        on_delivery=lambda _: None,
        emit=lambda _: None,
        declare=declare_for(other),
    )

    with pytest.raises(TopologyError, match=r"\.q\.second exists"):
        async with asyncio.timeout(60):
            await consumption.run()


async def test_verify_lists_what_is_missing_and_what_differs_and_changes_nothing(
    broker: Broker, declared: Topology
) -> None:
    wider = Topology(broker.prefix, ["default", "second"], rungs=declared.rungs)
    await make_queue(broker.url, wider.work_queue("second"), {})

    async with connected(broker.url, "test") as connection:
        first = await verify(connection, wider)
        second = await verify(connection, wider)
        same = await verify(connection, declared)

    assert {(one.kind, one.name, one.problem) for one in first} == {
        ("queue", wider.dead_queue("second"), Problem.MISSING),
        ("queue", wider.work_queue("second"), Problem.DIFFERING),
    }
    assert second == first
    assert same == []


async def test_a_user_without_the_right_to_configure_consumes_and_publishes(
    serve: Start, broker: Broker, control: Control
) -> None:
    prefix = re.escape(broker.prefix)
    url = await control.add_user(
        broker.url,
        write=rf"^{prefix}\.(tasks|delay\..*|dlx)$",
        read=rf"^{prefix}\.(q|dead)\..*|{prefix}\.unroutable$",
    )
    service = serve(url=url, may_declare=False)

    await service.is_consuming()
    await service.publish(b"now")
    await service.publish(b"later", delay=1)

    assert (await service.next()).body == b"now"
    assert (await service.next()).body == b"later"
    assert await service.consumption.ready_depth("default") in (0, None)  # only 4.3.0 does not say


async def test_after_too_many_returns_the_broker_dead_letters_with_its_reason(
    serve: Start, declared: Topology
) -> None:
    service = serve(
        subscriptions=[
            Subscription("default", declared.work_queue("default"), 1),
            Subscription("dead", declared.dead_queue("default"), 1),
        ]
    )
    await service.publish(b"poison", delay=1)

    delivery = await service.next()
    while delivery.queue == "default":
        delivery.release()
        delivery = await service.next()

    assert (delivery.routing_key, delivery.poisoning) == ("default.poison", Poisoning.DELIVERY_LIMIT)

"""What a handler sends: with its success or not at all, whatever becomes of the daemon then."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable

import aio_pika
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until

pytestmark = pytest.mark.timeout(300)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Listener:
    """An exchange of the author's, and somebody who hears what is sent to it."""

    def __init__(self, service: Service) -> None:
        self.exchange = f"{service.prefix}-orders"
        self._queue = f"{service.prefix}-heard"
        self._service = service

    def declare(self) -> None:
        asyncio.run(self._declare())

    async def _declare(self) -> None:
        async with await aio_pika.connect(self._service.amqp_url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(self.exchange, "topic", durable=True)
            queue = await channel.declare_queue(self._queue, durable=True)
            await queue.bind(exchange, "order.*")

    def heard(self) -> list[tuple[object, object]]:
        """Take what has come: payload and event id."""
        return asyncio.run(self._heard())

    async def _heard(self) -> list[tuple[object, object]]:
        found: list[tuple[object, object]] = []
        async with await aio_pika.connect(self._service.amqp_url) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(self._queue)
            while (one := await queue.get(fail=False, no_ack=True)) is not None:
                found.append((json.loads(one.body), one.headers["bw-event-id"]))
        return found


@pytest.fixture
def listener(service: Service) -> Listener:
    service.settings = {"HANDLERS": "tests.support.sending_handlers", "QUEUES": "default,other"}
    return Listener(service)


@pytest.fixture
def order(listener: Listener) -> Callable[[float], aio_pika.Message]:
    def make(delay: float) -> aio_pika.Message:
        return message("places_order", "o-1", {"exchange": listener.exchange, "delay": delay})

    return make


def test_a_daemon_killed_after_the_commit_leaves_what_was_sent_to_another(
    service: Service, listener: Listener, order: Callable[[float], aio_pika.Message]
) -> None:
    listener.declare()
    doomed = service.start(FAILPOINT="recorded:kill9")
    service.publish(order(1))
    assert doomed.wait() == -signal.SIGKILL
    assert service.task("bill-1")["state"] == "queued"

    service.start()

    service.until_states(succeeded=2)
    service.until_rest()
    assert service.runs() == {"o-1": 1, "bill-1": 1}
    ((payload, _),) = {heard[1]: heard for heard in listener.heard()}.values()  # a repeat has the same id
    assert payload == {"placed": 1}


def test_a_daemon_killed_before_the_commit_sends_nothing_until_its_handler_ran_again(
    service: Service, listener: Listener, order: Callable[[float], aio_pika.Message]
) -> None:
    listener.declare()
    doomed = service.start(FAILPOINT="executed:kill9")
    service.publish(order(0))
    assert doomed.wait() == -signal.SIGKILL
    before = (service.states(), listener.heard())

    service.start()

    service.until_states(succeeded=2)
    service.until_rest()
    assert before == ({"running": 1}, [])
    assert service.runs() == {"o-1": 2, "bill-1": 1}
    assert [payload for payload, _ in listener.heard()] == [{"placed": 1}]


def test_an_attempt_that_fails_sends_nothing(service: Service, listener: Listener) -> None:
    listener.declare()
    service.start()

    service.publish(message("sends_and_fails", "f-1", {"exchange": listener.exchange}))

    service.until_states(dead=1)
    service.until_rest()
    assert service.runs() == {"f-1": 1}
    assert listener.heard() == []


def test_an_event_waits_for_its_exchange_and_keeps_nobody_else_waiting(
    service: Service, listener: Listener, order: Callable[[float], aio_pika.Message]
) -> None:
    daemon = service.start()
    service.publish(order(0))
    service.until_states(succeeded=2)
    until("the event was refused", lambda: service.rows("SELECT id FROM outbox WHERE failures > 0"))
    until("the refusal is told", lambda: any(listener.exchange in str(line) for line in daemon.lines()))

    listener.declare()

    service.until_rest()
    assert [payload for payload, _ in listener.heard()] == [{"placed": 1}]


def test_tasks_send_tasks_in_one_trace(service: Service, listener: Listener) -> None:
    service.start()

    service.publish(message("first", "first-1", headers={"traceparent": TRACE}))

    service.until_states(succeeded=3)
    service.until_rest()
    assert service.runs() == {"first-1": 1, "second-1": 1, "third-1": 1}
    assert json.loads(service.task("third-1")["result"]) == TRACE
    assert service.task("third-1")["queue"] == "other"


def test_more_tasks_than_a_daemon_remembers_are_all_run_once(service: Service, listener: Listener) -> None:
    service.start()

    service.publish(message("sends_many", "m-1", {"count": 1500}))

    service.until_states(succeeded=1501, seconds=120)
    service.until_rest()
    assert service.runs() == {f"many-{number}": 1 for number in range(1500)}

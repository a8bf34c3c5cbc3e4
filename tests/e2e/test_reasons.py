"""Whatever a publisher sends or a handler does: it ends with its reason code, and the queue goes on."""

from __future__ import annotations

import asyncio
import json
import struct
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until
from tests.support.raw_amqp import FLAG, nested, raw_publisher, short, table
from tests.support.services import Broker, call_management

pytestmark = pytest.mark.timeout(240)


def test_every_end_that_messages_and_handlers_can_cause_has_its_reason_code(service: Service) -> None:
    service.start(MAX_BODY_BYTES="10KiB")
    service.publish(
        aio_pika.Message(b"{not json", type="double", message_id="malformed-1"),
        message("double", "oversize-1", {"x": "y" * 20_000}),
        message("no.such.task", "unknown_task-1"),
        message("double", "invalid_payload-1", {"x": "not a number"}),
        message("double", "double-1", {"x": 1}),
        message("always_fails", "attempts_exhausted-1"),
        message("gives_up", "gave_up-1"),
        message("too_slow", "timeout-1"),
        message("large_result", "result_too_large-1"),
        message("odd_result", "result_unserialisable-1"),
    )
    until("the first of two is done", lambda: service.states().get("succeeded") == 1)
    service.publish(message("double", "double-1", {"x": 2}))

    until("ten dead letters", lambda: len(service.rows("SELECT id FROM dead_letters")) == 10)
    service.until_rest()
    letters = service.rows("SELECT reason, message_id, task_key, body FROM dead_letters")
    assert {letter["reason"] for letter in letters if letter["message_id"] != "double-1"} == {
        letter["message_id"].removesuffix("-1") for letter in letters if letter["message_id"] != "double-1"
    }
    (conflict,) = [letter for letter in letters if letter["message_id"] == "double-1"]
    assert (conflict["reason"], conflict["task_key"], conflict["body"]) == ("conflict", None, b'{"x": 2}')
    assert service.states() == {"succeeded": 1, "dead": 9}
    (malformed,) = [letter for letter in letters if letter["reason"] == "malformed"]
    assert malformed["body"] == b"{not json"


def test_a_dead_letter_is_published_with_its_reason_and_emptied_into_the_database(service: Service) -> None:
    service.start(DEAD_LETTERS="queue")
    service.publish(message("gives_up", "g-1"))
    service.until_states(dead=1)

    async def read() -> aio_pika.abc.AbstractIncomingMessage:
        connection = await aio_pika.connect(service.amqp_url)
        async with connection:
            channel = await connection.channel()
            queue = await channel.get_queue(f"{service.prefix}.dead.default", ensure=False)
            letter = await queue.get(fail=True, timeout=10)
            await letter.ack()
            return letter

    service.until_rest()
    letter = asyncio.run(read())
    assert letter.routing_key == "default.gave_up.gives_up"
    assert letter.body == b"{}"
    assert {name: letter.headers[name] for name in ("bw-task-id", "bw-reason", "bw-error-type")} == {
        "bw-task-id": "g-1",
        "bw-reason": "gave_up",
        "bw-error-type": "GiveUp",
    }


def test_an_expired_message_ends_as_a_row_without_a_dead_letter(service: Service) -> None:
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    service.start()

    service.publish(message("double", "e-1", {"x": 1}, headers={"not-after": past}))

    service.until_states(expired=1)
    assert not service.rows("SELECT id FROM dead_letters")
    assert not service.runs()


def test_a_message_that_the_broker_expired_in_the_queue_ends_as_expired(service: Service) -> None:
    worker = service.start()
    assert worker.stop() == 0
    service.publish(message("double", "e-1", {"x": 1}, expiration=0.2))
    until("the broker expired it", lambda: service.depth() == 0)

    service.start()

    service.until_states(expired=1)
    assert not service.runs()


def test_a_message_that_the_broker_gave_up_is_sent_again_and_done(service: Service, broker: Broker) -> None:
    if broker.management_url is None:
        pytest.fail("this test sets a policy: it needs the HTTP API of RabbitMQ", pytrace=False)
    worker = service.start()
    assert worker.stop() == 0
    policy = {"pattern": rf"^{broker.prefix}\.q\.", "definition": {"delivery-limit": 1}, "apply-to": "queues"}
    path = f"/api/policies/{broker.vhost}/limit-{broker.prefix}"
    call_management(broker.management_url, "PUT", path, json.dumps(policy).encode())
    service.publish(message("double", "p-1", {"x": 1}))
    asyncio.run(give_back_until_gone(service))
    call_management(broker.management_url, "DELETE", path)

    service.start()

    service.until_states(succeeded=1)
    service.until_rest()
    task = service.task("p-1")
    assert (task["poisonings"], task["attempt"]) == (1, 1)
    assert service.runs() == {"p-1": 1}


async def give_back_until_gone(service: Service) -> None:
    connection = await aio_pika.connect(service.amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(f"{service.prefix}.q.default", ensure=False)
        for _ in range(600):
            given = await queue.get(no_ack=False, fail=False)
            if given is not None:
                await given.reject(requeue=True)
                continue
            declared = await channel.declare_queue(f"{service.prefix}.dead.default", passive=True)
            if declared.declaration_result.message_count == 1:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the broker never gave it up")


def test_a_message_for_no_queue_is_kept_as_unroutable(service: Service) -> None:
    service.start()

    service.publish(message("double", "u-1", {"x": 1}), queue="nowhere")

    service.until_states(dead=1)
    (letter,) = service.rows("SELECT queue, reason, body FROM dead_letters")
    assert (letter["queue"], letter["reason"]) == ("nowhere", "unroutable")
    assert letter["body"] == b'{"x": 1}'


def test_a_message_without_an_id_is_stamped_and_done(service: Service) -> None:
    service.start()

    publish_raw(service, FLAG["message_type"], short(b"double"), b'{"x": 3}')  # client libraries add an id

    service.until_states(succeeded=1)
    (row,) = service.rows("SELECT message_id, result FROM tasks")
    assert len(row["message_id"]) == 36
    assert row["result"] == "6"


@pytest.mark.parametrize(
    ("flags", "properties"),
    [
        (FLAG["timestamp"], struct.pack(">Q", 999_999_999_999_999)),
        (FLAG["headers"], table((b"t", b"T" + struct.pack(">Q", 2**63)))),
        (FLAG["headers"], nested(3000)),
        (FLAG["headers"], table((b"\xff\xfe", b"t\x01"))),
    ],
    ids=["timestamp", "time header", "nesting", "header name"],
)
def test_a_message_that_kills_the_frame_decoder_of_clients_becomes_a_dead_letter(
    service: Service, flags: int, properties: bytes
) -> None:
    service.start()

    publish_raw(service, flags, properties, b"its body")
    service.publish(message("double", "next", {"x": 1}))

    service.until_states(succeeded=1)
    look = "SELECT reason, body FROM dead_letters"
    (letter,) = until("its letter is written", lambda: service.rows(look))
    assert (letter["reason"], letter["body"]) == ("malformed", b"its body")


def publish_raw(service: Service, flags: int, properties: bytes, body: bytes) -> None:
    async def publish() -> None:
        async with raw_publisher(service.amqp_url) as publisher:
            await publisher.publish(
                f"{service.prefix}.tasks", b"default", flags=flags, properties=properties, body=body
            )

    asyncio.run(publish())


def test_a_duplicate_is_acked_and_not_run(service: Service) -> None:
    worker = service.start()
    service.publish(message("double", "d-1", {"x": 1}), message("double", "d-1", {"x": 1}))

    service.until_states(succeeded=1)
    until(
        "the duplicate is counted",
        lambda: 'duplicates_total{queue="default"} 1.0' in worker.get("/metrics")[1],
    )
    service.until_rest()
    assert service.runs() == {"d-1": 1}


def test_a_task_is_not_started_before_its_deliver_at(service: Service) -> None:
    service.start()
    due = datetime.now(UTC) + timedelta(seconds=3)

    service.publish(message("double", "l-1", {"x": 1}, headers={"deliver-at": due.isoformat()}))

    service.until_states(succeeded=1)
    assert service.task("l-1")["started_at"] >= due


def test_an_unknown_task_waits_its_grace_and_is_run_by_the_release_that_knows_it(service: Service) -> None:
    old = service.start(UNKNOWN_TASK_GRACE="5m", HANDLERS="tests.support.few_handlers")
    service.publish(message("double", "n-1", {"x": 2}))
    service.until_states(queued=1)
    assert old.stop() == 0

    service.start(UNKNOWN_TASK_GRACE="5m")

    service.until_states(succeeded=1)
    assert service.task("n-1")["attempt"] == 1


def test_a_reply_goes_to_an_allowed_queue_and_to_no_other(service: Service) -> None:
    async def ask(reply_to: str, task_id: str) -> dict[str, object] | None:
        connection = await aio_pika.connect(service.amqp_url)
        async with connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(reply_to, durable=True)
            exchange = await channel.get_exchange(f"{service.prefix}.tasks", ensure=False)
            await exchange.publish(
                message("double", task_id, {"x": 4}, reply_to=reply_to, correlation_id="c-1"), "default"
            )
            for _ in range(600):
                if (answer := await queue.get(fail=False)) is not None:
                    assert answer.correlation_id == "c-1"
                    await answer.ack()
                    return dict(json.loads(answer.body))
                if reply_to.startswith("other"):
                    return None
                await asyncio.sleep(0.1)
            return None

    service.start(REPLY_TO="answers-*")

    assert asyncio.run(ask(f"answers-{service.prefix}", "r-1")) == {
        "id": "r-1",
        "name": "double",
        "state": "succeeded",
        "attempt": 1,
        "reason": None,
        "error_type": None,
        "result": 8,
    }
    asyncio.run(ask(f"other-{service.prefix}", "r-2"))
    service.until_states(succeeded=2)
    assert service.task("r-2")["reply_to"] is None

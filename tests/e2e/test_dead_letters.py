"""What people do about dead letters and waiting tasks, with a daemon running."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from tests.e2e.conftest import Service, message
from tests.support.daemon import until

pytestmark = pytest.mark.timeout(240)


def test_a_replayed_dead_letter_runs_again_and_leaves_a_trace(service: Service) -> None:
    service.start()
    service.publish(message("gives_up", "g-1"))
    service.until_states(dead=1)
    (letter,) = service.rows("SELECT id FROM dead_letters")

    service.command("dead", "replay", str(letter["id"]), "--actor", "ada", "--json")

    until("it died again", lambda: len(service.rows("SELECT id FROM dead_letters")) == 2)
    assert service.runs() == {"g-1": 2}
    assert service.task("g-1")["attempt"] == 1
    (audit,) = service.rows("SELECT actor, action FROM audit")
    assert (audit["actor"], audit["action"]) == ("ada", "replay")


def test_a_letter_replayed_by_its_reason_succeeds_with_a_release_that_can_do_it(service: Service) -> None:
    old = service.start(HANDLERS="tests.support.few_handlers")
    service.publish(message("double", "d-1", {"x": 5}))
    service.until_states(dead=1)
    assert old.stop() == 0
    service.start()

    service.command("dead", "replay", "--reason", "unknown_task", "--actor", "ada", "--json")

    service.until_states(succeeded=1)
    assert service.task("d-1")["result"] == "10"


def test_a_foreign_dead_letter_is_kept_and_can_be_replayed(service: Service) -> None:
    service.start()

    async def bury() -> None:
        connection = await aio_pika.connect(service.amqp_url)
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(f"{service.prefix}.dlx", ensure=False)
            await exchange.publish(message("double", "f-1", {"x": 6}), "default.whatever.double")

    asyncio.run(bury())
    until("it is kept", lambda: len(service.rows("SELECT id FROM dead_letters")) == 1)

    (letter,) = service.rows("SELECT id FROM dead_letters")
    service.command("dead", "replay", str(letter["id"]), "--actor", "ada", "--json")

    service.until_states(succeeded=1)
    assert service.task("f-1")["result"] == "12"


def test_a_cancelled_waiting_task_is_not_run_when_its_copy_comes(service: Service) -> None:
    service.settings = {"RETRY_DELAY": "30s", "RETRY_JITTER": "0"}  # longer than a command takes
    worker = service.start()
    service.publish(message("fails_once", "c-1"))
    service.until_states(retrying=1)

    service.command("tasks", "cancel", "c-1", "--actor", "ada", "--json")

    assert service.states() == {"cancelled": 1}
    counted = 'duplicates_total{queue="default"} 1.0'
    until("its copy came and was acked", lambda: counted in worker.get("/metrics")[1], seconds=90)
    service.until_rest()
    assert service.runs() == {"c-1": 1}


def test_a_task_published_by_the_command_line_has_the_id_that_it_printed(service: Service) -> None:
    service.start()

    (published,) = service.command("publish", "double", "--data", '{"x": 4}', "--queue", "default", "--json")

    service.until_states(succeeded=1)
    assert service.task(str(published["id"]))["result"] == "8"

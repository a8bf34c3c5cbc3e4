"""How much is written about servers that are away for long, or come and go."""

from __future__ import annotations

import structlog

from broker_worker.errors import BrokerUnavailableError, StoreUnavailableError
from broker_worker.events import ConnectionChanged, ConsumerChanged, PublishFailed, ServiceFailed
from broker_worker.telemetry.server_lines import FAULTS, FLAPS, ServerEvent, ServerLines
from broker_worker.telemetry.throttle import INTERVAL, MOST_KEYS, Throttle
from tests.unit.telemetry.conftest import Lines


class World:
    def __init__(self, lines: Lines) -> None:
        lines.configure("info")
        self.now = 0.0
        self._writer = ServerLines(structlog.stdlib.get_logger("test").bind(), monotonic=lambda: self.now)
        self._lines = lines

    def tell(self, *events: ServerEvent) -> None:
        for event in events:
            self._writer.write(event)

    @property
    def told(self) -> list[str]:
        return [line["message"] for line in self._lines.all]

    @property
    def held_back(self) -> list[int]:
        return [line.get("held_back", 0) for line in self._lines.all]


def test_services_that_miss_the_same_server_write_one_line_a_minute(lines: Lines) -> None:
    world = World(lines)

    for _ in range(int(3 * INTERVAL)):
        world.tell(ServiceFailed("relay", StoreUnavailableError("no route")))
        world.tell(ServiceFailed("rescuer", StoreUnavailableError("no route")))
        world.now += 1

    assert world.told == ["service failed"] * 3
    assert world.held_back == [0, 119, 119]


def test_two_servers_have_a_line_each(lines: Lines) -> None:
    world = World(lines)

    world.tell(ServiceFailed("relay", StoreUnavailableError("no route")))
    world.tell(ServiceFailed("sampler", BrokerUnavailableError("no route")))

    assert world.told == ["service failed"] * 2


def test_of_faults_of_ours_a_few_of_each_kind_are_written(lines: Lines) -> None:
    world = World(lines)

    world.tell(*[ServiceFailed("relay", KeyError("x"))] * 100)
    world.tell(ServiceFailed("relay", ValueError("x")))
    world.now += INTERVAL
    world.tell(ServiceFailed("relay", KeyError("x")))

    assert world.told == ["service failed"] * (FAULTS + 2)
    assert world.held_back[-1] == 100 - FAULTS


def test_a_thousand_publishes_that_fail_alike_are_one_line(lines: Lines) -> None:
    world = World(lines)

    world.tell(*[PublishFailed("copy", "email", "returned")] * 1000)
    world.tell(PublishFailed("event", "email", "no such exchange"))

    assert world.told == ["publish failed"] * 2


def test_what_flaps_is_shown_a_few_times_and_its_last_line_is_true(lines: Lines) -> None:
    world = World(lines)
    up = ConnectionChanged("consume", is_up=True)
    down = ConnectionChanged("consume", is_up=False, detail="reset")

    world.tell(up, *[down, up] * 50)

    assert world.told == ["connected", *["connection lost", "connected"] * FLAPS]
    world.now += INTERVAL
    world.tell(down)
    assert world.told[-1] == "connection lost"
    assert world.held_back[-1] == 50 - FLAPS


def test_each_queue_flaps_on_its_own(lines: Lines) -> None:
    world = World(lines)

    for _ in range(FLAPS + 1):
        world.tell(ConsumerChanged("a", is_up=False))
    world.tell(ConsumerChanged("b", is_up=False))

    assert world.told == ["consumer lost"] * (FLAPS + 1)


def test_the_memory_of_a_throttle_is_bounded() -> None:
    throttle = Throttle(monotonic=lambda: 0.0)

    admitted = [throttle.admit(key) for key in range(2 * MOST_KEYS)]

    assert admitted == [0] * (2 * MOST_KEYS)
    assert throttle.admit(2 * MOST_KEYS - 1) is None
    assert throttle.admit(0) == 0

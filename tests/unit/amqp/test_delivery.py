from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.base import Frame

from broker_worker.amqp.channel import ConsumingChannel
from broker_worker.amqp.delivery import Acker, read_poisoning
from broker_worker.task import Poisoning


class Channel:
    """A broker's side of a channel: knows what is unacked, and refuses what a broker refuses."""

    def __init__(self, room: int = 1000) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_alive = True
        self.room = room
        self.unacked: list[int] = []
        self.acked: set[int] = set()
        self.dead_lettered: set[int] = set()
        self.frames = 0

    def deliver(self, acker: Acker, count: int) -> None:
        for _ in range(count):
            tag = len(self.unacked) + len(self.acked) + 1
            self.unacked.append(tag)
            acker.delivered(tag)

    def send(self, frame: Frame) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.frames += 1
        assert isinstance(frame, commands.Basic.Ack | commands.Basic.Nack)
        tag = frame.delivery_tag
        assert tag in self.unacked, "unknown delivery tag: the broker closes the channel"
        done = {one for one in self.unacked if one == tag or (frame.multiple and one < tag)}
        self.unacked = [one for one in self.unacked if one not in done]
        if isinstance(frame, commands.Basic.Nack) and not frame.requeue:
            self.dead_lettered |= done
        else:
            self.acked |= done
        return True


def pair(**options: int) -> tuple[Channel, Acker]:
    channel = Channel(**options)
    return channel, Acker(cast("ConsumingChannel", channel))  # stands for one


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_is_set_aside_is_dead_lettered_and_never_acked_with_its_neighbours() -> None:
    channel, acker = pair()
    channel.deliver(acker, 4)

    acker.settle(1)
    acker.set_aside(2)
    acker.settle(3)
    acker.settle(4)
    await turn()

    assert channel.dead_lettered == {2}
    assert channel.acked == {1, 3, 4}
    assert acker.unsettled == 0


async def test_what_finds_no_room_to_be_set_aside_holds_later_acks_up_until_it_does() -> None:
    channel, acker = pair(room=0)
    channel.deliver(acker, 2)

    acker.set_aside(1)
    acker.settle(2)
    assert acker.unsettled == 1
    channel.room = 10
    while acker.unsettled:
        await asyncio.sleep(0)
    await turn()

    assert channel.dead_lettered == {1}


async def test_what_is_set_aside_on_a_lost_channel_goes_back_by_itself() -> None:
    channel, acker = pair()
    channel.deliver(acker, 1)
    channel.is_alive = False

    acker.set_aside(1)

    assert channel.unacked == [1]


async def test_acks_of_one_turn_go_out_as_one_frame() -> None:
    channel, acker = pair()
    channel.deliver(acker, 5)

    for tag in (3, 1, 2, 5, 4):
        acker.settle(tag)
    await turn()

    assert (channel.frames, channel.unacked, acker.unsettled) == (1, [], 0)


async def test_a_merged_ack_never_passes_an_unsettled_tag() -> None:
    channel, acker = pair()
    channel.deliver(acker, 6)

    for tag in (1, 2, 4, 6):
        acker.settle(tag)
    await turn()

    assert channel.unacked == [3, 5]
    assert acker.unsettled == 2


async def test_a_merged_ack_ends_with_a_tag_that_was_not_acked_before() -> None:
    channel, acker = pair()
    channel.deliver(acker, 5)
    acker.settle(5)
    await turn()

    for tag in (1, 2, 3, 4):
        acker.settle(tag)
    await turn()

    assert (channel.frames, channel.unacked) == (2, [])


async def test_a_released_delivery_is_not_acked_with_its_neighbours() -> None:
    channel, acker = pair()
    channel.deliver(acker, 3)

    acker.release(2)
    for tag in (1, 2, 3):
        acker.settle(tag)
    await turn()

    assert channel.acked == {1, 2, 3}
    assert channel.frames == 2


async def test_however_much_is_acked_behind_a_long_run_nothing_of_it_is_kept() -> None:
    channel, acker = pair(room=10_000)
    channel.deliver(acker, 1)
    for tag in range(2, 2002):
        channel.deliver(acker, 1)
        acker.settle(tag)
        acker.flush()

    kept = [value for value in vars(acker).values() if isinstance(value, Sized)]

    assert sum(map(len, kept)) == 1
    assert channel.unacked == [1]


async def test_a_second_ack_of_a_delivery_is_nothing() -> None:
    channel, acker = pair()
    channel.deliver(acker, 3)

    for tag in (2, 2, 9):
        acker.settle(tag)
    await turn()
    acker.settle(2)
    await turn()

    assert (channel.unacked, acker.unsettled) == ([1, 3], 2)


async def test_an_ack_for_a_channel_that_is_gone_is_dropped() -> None:
    channel, acker = pair()
    channel.deliver(acker, 2)
    acker.settle(1)
    channel.is_alive = False

    acker.settle(2)
    await turn()

    assert channel.unacked == [1, 2]


async def test_acks_that_find_no_room_are_sent_later() -> None:
    channel, acker = pair(room=0)
    channel.deliver(acker, 3)
    for tag in (1, 3):
        acker.settle(tag)
    await turn()
    assert channel.unacked == [1, 2, 3]

    channel.room = 100
    acker.flush()

    assert channel.unacked == [2]


@given(st.lists(st.tuples(st.sampled_from("dsrft"), st.integers(1, 30)), max_size=120), st.integers(0, 40))
async def test_the_broker_never_loses_what_is_unsettled_nor_refuses_an_ack(
    steps: list[tuple[str, int]], room: int
) -> None:
    channel, acker = pair(room=room)
    settled, released = set[int](), set[int]()
    for step, number in steps:
        newest = len(channel.unacked) + len(channel.acked)
        match step:
            case "d":
                channel.deliver(acker, number % 4)
            case "s" if number <= newest and number not in released:
                acker.settle(number)
                settled.add(number)
            case "r" if number <= newest and number not in settled:
                before = set(channel.acked)
                acker.release(number)
                released |= set(channel.acked) - before
            case "f":
                channel.room = number
                acker.flush()
            case _:
                await turn()
        assert channel.acked <= settled | released
        assert acker.unsettled == newest_tag(channel) - len(settled | released)

    channel.room = 1000
    acker.flush()
    assert channel.acked == settled | released


def newest_tag(channel: Channel) -> int:
    return len(channel.unacked) + len(channel.acked)


def work_queue(name: str) -> str:
    return f"bw.q.{name}"


def death(queue: object, reason: object) -> dict[str, object]:
    return {"queue": queue, "reason": reason, "count": 1}


@pytest.mark.parametrize("reason", ["delivery_limit", "expired"])
def test_a_death_in_the_work_queue_is_a_poisoning(reason: str) -> None:
    headers = {"x-death": [death("bw.q.email", reason), death("bw.delay.1000", "expired")]}

    assert read_poisoning("email.poison", headers, work_queue) == Poisoning(reason)


def test_the_end_of_a_delay_is_no_poisoning() -> None:
    headers = {"x-death": [death("bw.delay.1000", "expired")], "x-first-death-queue": "bw.delay.1000"}

    assert read_poisoning("email.poison", headers, work_queue) is None


def test_our_own_dead_letter_is_no_poisoning() -> None:
    headers = {"x-death": [death("bw.q.email", "delivery_limit")]}

    assert read_poisoning("email.gave_up.x", headers, work_queue) is None
    assert read_poisoning("email", headers, work_queue) is None


def test_a_rejection_by_another_consumer_is_no_poisoning() -> None:
    assert read_poisoning("email.poison", {"x-death": [death("bw.q.email", "rejected")]}, work_queue) is None


def test_the_last_death_is_enough() -> None:
    headers = {"x-last-death-queue": "bw.q.email", "x-last-death-reason": "delivery_limit"}

    assert read_poisoning("email.poison", headers, work_queue) is Poisoning.DELIVERY_LIMIT


anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["x-death", "x-last-death-queue", "x-first-death-reason"]), anything))
def test_no_header_of_a_publisher_makes_it_raise(headers: dict[str, object]) -> None:
    assert read_poisoning("email.poison", headers, work_queue) is None

from __future__ import annotations

from broker_worker.amqp.looking import QueueLook
from broker_worker.amqp.presence import MOST_STRIKES, STRIKES, Presence

FORGOTTEN = QueueLook(ready=0, consumers=0)
STARVING = QueueLook(ready=7, consumers=2)
WELL = QueueLook(ready=0, consumers=1)


def looks_until_replaced(presence: Presence, look: QueueLook, *, deliveries: int = 0) -> int:
    presence.begin()
    count = 1
    while presence.judge(look, deliveries=deliveries, has_room=True) is None:
        count += 1
        assert count < 1000
    return count


def test_a_consumer_that_the_broker_does_not_know_is_replaced_at_the_second_look() -> None:
    assert looks_until_replaced(Presence(), FORGOTTEN) == STRIKES


def test_a_consumer_beside_others_that_gets_nothing_of_what_waits_is_replaced() -> None:
    assert looks_until_replaced(Presence(), STARVING) == STRIKES


def test_a_consumer_without_room_or_without_work_is_left_alone() -> None:
    presence = Presence()

    for _ in range(100):
        assert presence.judge(STARVING, deliveries=0, has_room=False) is None
        assert presence.judge(WELL, deliveries=0, has_room=True) is None


def test_one_look_proves_nothing() -> None:
    presence = Presence()

    for _ in range(100):
        assert presence.judge(FORGOTTEN, deliveries=0, has_room=True) is None
        assert presence.judge(WELL, deliveries=0, has_room=True) is None


def test_a_consumer_that_gets_deliveries_is_left_alone() -> None:
    presence = Presence()

    for deliveries in range(100):
        presence.judge(STARVING, deliveries=2 * deliveries, has_room=True)
        assert presence.judge(STARVING, deliveries=2 * deliveries + 1, has_room=True) is None


def test_a_queue_that_is_gone_is_told_at_the_first_look() -> None:
    assert Presence().judge(None, deliveries=5, has_room=False) == "the queue does not exist any more"


def test_where_replacing_does_not_help_it_is_done_less_and_less_often() -> None:
    presence = Presence()

    counts = [looks_until_replaced(presence, STARVING) for _ in range(8)]

    assert counts == [2, 4, 8, 16, 32, MOST_STRIKES, MOST_STRIKES, MOST_STRIKES]


def test_a_delivery_proves_that_it_helped() -> None:
    presence = Presence()
    for _ in range(5):
        looks_until_replaced(presence, STARVING)

    presence.begin()
    presence.judge(STARVING, deliveries=1, has_room=True)

    assert looks_until_replaced(presence, STARVING) == STRIKES

from __future__ import annotations

from broker_worker import ports
from broker_worker.amqp.delivery import AmqpDelivery
from broker_worker.amqp.publisher import Publisher


def as_delivery(delivery: AmqpDelivery) -> ports.Delivery:
    """Checked by mypy."""
    return delivery


def as_publisher(publisher: Publisher) -> ports.Publisher:
    """Checked by mypy."""
    return publisher


def test_the_adapters_have_the_shape_of_their_ports() -> None:
    assert callable(as_delivery)
    assert callable(as_publisher)

"""What it costs to find out that a body does not fit."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from broker_worker.failure import Refusal
from broker_worker.payload import SMALL, Payload, read_signature


class Item(BaseModel):
    sku: str
    count: int


class Order(BaseModel):
    items: list[Item]


def order(order: Order) -> None:
    """Take a model that has models in it."""


def members(items: list[int], by_name: dict[str, int]) -> None:
    """Take collections as they are."""


def refusal(payload: Payload, body: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        payload.read_json(body)
    return caught.value.failure.message


@pytest.mark.parametrize(
    ("function", "body", "shown"),
    [
        (
            order,
            b'{"items":[%s]}' % b",".join([b"{}"] * 300_000),
            "items.0.sku: missing; items.0.count: missing",
        ),
        (members, b'{"by_name":{},"items":[%s]}' % b",".join([b"{}"] * 300_000), "items.0: int_type"),
        (
            members,
            b'{"items":[],"by_name":{%s}}' % b",".join(b'"%d":{}' % number for number in range(90_000)),
            "by_name.*: int_type",
        ),
    ],
    ids=["models", "list", "mapping"],
)
def test_a_large_collection_is_left_at_its_first_fault(function: object, body: bytes, shown: str) -> None:
    assert refusal(read_signature(function).payload, body) == shown  # type: ignore[arg-type]


def test_of_a_small_body_each_fault_is_told() -> None:
    assert refusal(read_signature(order).payload, b'{"items":[{"sku":"a"},{"count":1}]}') == (
        "items.0.count: missing; items.1.sku: missing"
    )


def test_a_large_body_is_read_as_a_small_one() -> None:
    body = b'{"items":[%s]}' % b",".join([b'{"sku":"a","count":"2"}'] * SMALL)

    arguments = read_signature(order).payload.read_json(body)

    assert arguments == {"order": Order(items=[Item(sku="a", count=2)] * SMALL)}

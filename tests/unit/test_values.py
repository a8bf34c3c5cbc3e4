from __future__ import annotations

from dataclasses import field, fields, replace

from broker_worker.values import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 0
    tags: tuple[str, ...] = field(default=(), repr=False)


def test_values_are_equal_by_their_fields_and_can_be_keys() -> None:
    assert Point(1, 2) == Point(1, 2) != Point(2, 1)
    assert {Point(1): "one"}[Point(1)] == "one"


def test_the_standard_library_takes_them_for_dataclasses() -> None:
    assert replace(Point(1, 2), y=3) == Point(1, 3)
    assert [each.name for each in fields(Point)] == ["x", "y", "tags"]
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"


def test_they_have_no_room_for_anything_else() -> None:
    assert not hasattr(Point(1), "__dict__")

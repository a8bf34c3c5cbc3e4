from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from sqlalchemy.ext.asyncio import AsyncSession

from broker_worker.context import Context
from broker_worker.errors import ConfigurationError
from broker_worker.failure import Refusal
from broker_worker.handler import Handler, Limits
from broker_worker.outcome import Reason
from broker_worker.registry import Registry
from broker_worker.retry import Policy, RetryPolicy

JSON = "application/json"
DEFAULTS = Limits(RetryPolicy(12, timedelta(seconds=5), timedelta(hours=1)), timedelta(minutes=10))


class Order(BaseModel):
    id: int
    kind: Literal["a", "b"] = "a"
    prices: dict[str, float] = {}

    @field_validator("id")
    @classmethod
    def id_is_known(cls, value: int) -> int:
        if value == 13:
            raise KeyError("secret 13")
        if value == 14:
            raise SystemExit
        return value


@dataclasses.dataclass
class Point:
    x: int


class Node(BaseModel):
    children: list[Node] = []


def handler_of(function: Callable[..., object], registry: Registry | None = None) -> Handler:
    registry = registry or Registry()
    registry.task("it")(function)
    handler = registry.lookup("it")
    assert handler is not None
    return handler


def refused(handler: Handler, body: bytes, media_type: str = JSON) -> Refusal:
    with pytest.raises(Refusal) as caught:
        handler.bind(body, media_type)
    return caught.value


def wrong(function: Callable[..., object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        handler_of(function)
    (line,) = str(caught.value).splitlines()
    return line


def take_order(order: Order) -> None: ...


def make_thumbnail(image: str, width: int = 100) -> None: ...


def test_the_decorator_returns_the_function_unchanged() -> None:
    def function(order: Order) -> None: ...

    assert Registry().task("it")(function) is function


def test_a_model_parameter_gets_the_whole_body() -> None:
    assert handler_of(take_order).bind(b'{"id":"1"}', JSON) == {"order": Order(id=1)}


def test_a_dataclass_parameter_gets_the_whole_body() -> None:
    def function(point: Point | None = None) -> None: ...

    assert handler_of(function).bind(b'{"x":1}', JSON) == {"point": Point(1)}


def test_a_union_of_models_gets_the_whole_body() -> None:
    def function(what: Order | Point) -> None: ...

    assert handler_of(function).bind(b'{"x":1}', JSON) == {"what": Point(1)}


def test_several_parameters_get_the_members_of_the_body_by_name() -> None:
    handler = handler_of(make_thumbnail)

    assert handler.bind(b'{"image":"a.png","width":"7","more":1}', JSON) == {"image": "a.png", "width": 7}


def test_an_absent_member_is_left_to_the_functions_default() -> None:
    assert handler_of(make_thumbnail).bind(b'{"image":"a.png"}', JSON) == {"image": "a.png"}


def test_one_parameter_of_a_plain_type_is_a_member() -> None:
    def function(data: dict[str, int]) -> None: ...

    assert handler_of(function).bind(b'{"data":{"a":1}}', JSON) == {"data": {"a": 1}}


def test_models_among_several_parameters_are_members() -> None:
    def function(order: Order, at: datetime) -> None: ...

    body = b'{"order":{"id":1},"at":"2026-01-01T00:00:00Z"}'

    assert handler_of(function).bind(body, JSON) == {
        "order": Order(id=1),
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }


def test_any_parameter_name_can_be_a_member() -> None:
    def function(json: int, schema: int, *, model_x: int, _hidden: int, self: int, f0: int) -> None: ...

    body = b'{"json":1,"schema":2,"model_x":3,"_hidden":4,"self":5,"f0":6}'

    expected = {"json": 1, "schema": 2, "model_x": 3, "_hidden": 4, "self": 5, "f0": 6}
    assert handler_of(function).bind(body, JSON) == expected


def test_a_member_may_have_a_name_that_python_reserves() -> None:
    def function(sender: Annotated[str, Field(alias="from")], width: int = 1) -> None: ...

    assert handler_of(function).bind(b'{"from":"me"}', JSON) == {"sender": "me"}


def test_a_parameter_without_annotation_takes_anything() -> None:
    def function(data, more=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        ...

    assert handler_of(function).bind(b'{"data":[1]}', JSON) == {"data": [1]}


@pytest.mark.parametrize(
    "hint",
    [Context, Context | None, Optional[Context], Annotated[Context, "it"]],  # noqa: UP045
)
def test_the_context_is_found_by_its_annotation_wherever_it_stands(hint: object) -> None:
    async def function(width: int, here: object, height: int) -> None: ...

    function.__annotations__["here"] = hint
    handler = handler_of(function)

    assert handler.context_parameter == "here"
    assert handler.bind(b'{"width":1,"height":2}', JSON) == {"width": 1, "height": 2}


def test_a_model_beside_the_context_gets_the_whole_body() -> None:
    async def function(context: Context, order: Order) -> None: ...

    assert handler_of(function).bind(b'{"id":1}', JSON) == {"order": Order(id=1)}


@pytest.mark.parametrize("body", [b"", b" \n", b"{}", b"[1]", b"null"])
def test_a_handler_without_payload_takes_any_json_or_nothing(body: bytes) -> None:
    async def function(context: Context) -> None: ...

    assert handler_of(function).bind(body, JSON) == {}


def test_a_handler_without_payload_takes_nothing_but_json() -> None:
    def function() -> None: ...

    assert refused(handler_of(function), b"hello").reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"image":"\xff"}',
        b'\xef\xbb\xbf{"image":"a"}',
        b'{"image":"a","more":NaN}',
        b'{"image":"a","more":[-Infinity]}',
        b'{"image":"a","more":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"image":"a","more":' + b"1" * 5000 + b"}",
        b'{"image":"\\ud800"}',
        b'{"image":"a"}x',
    ],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    assert refused(handler_of(make_thumbnail), body).reason is Reason.MALFORMED


def test_words_that_look_like_numbers_are_fine_in_text() -> None:
    assert handler_of(make_thumbnail).bind(b'{"image":"NaN Infinity"}', JSON) == {"image": "NaN Infinity"}


@given(st.binary(max_size=50))
def test_any_body_is_bound_or_refused(body: bytes) -> None:
    handler = handler_of(make_thumbnail)

    assert refused(handler, body).reason in {Reason.MALFORMED, Reason.INVALID_PAYLOAD}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"kind":"secret"}', "id: missing; kind: literal_error"),
        (b'{"id":"secret"}', "id: int_parsing"),
        (b'{"id":1,"prices":{"secret":"secret"}}', "prices.*: float_parsing"),
        (b'"secret"', "body: model_type"),
    ],
)
def test_what_does_not_validate_is_told_by_place_and_kind_but_never_by_value(
    body: bytes, message: str
) -> None:
    refusal = refused(handler_of(take_order), body)

    assert (refusal.reason, refusal.failure.message) == (Reason.INVALID_PAYLOAD, message)
    assert "secret" not in repr(refusal)
    assert refusal.__suppress_context__  # the context is pydantic's own error, which shows the input


@pytest.mark.parametrize(("body", "kind"), [(b'{"id":13}', "KeyError"), (b'{"id":14}', "SystemExit")])
def test_whatever_a_validator_raises_is_told_by_its_type_only(body: bytes, kind: str) -> None:
    refusal = refused(handler_of(take_order), body)

    assert (refusal.reason, refusal.failure.error_type) == (Reason.INVALID_PAYLOAD, kind)
    assert "13" not in refusal.failure.message


def test_invalid_payloads_with_the_same_fault_share_a_fingerprint() -> None:
    def function(numbers: list[int]) -> None: ...

    handler = handler_of(function)

    one = refused(handler, b'{"numbers":["x"]}').failure.fingerprint
    other = refused(handler, b'{"numbers":[1,"x"]}').failure.fingerprint

    assert one == other


def test_another_media_type_needs_a_decoder() -> None:
    refusal = refused(handler_of(take_order), b"id=1", "text/x-pairs")

    assert refusal.reason is Reason.MALFORMED
    assert "'text/x-pairs'" in refusal.failure.message


def test_a_decoder_serves_its_media_type() -> None:
    registry = Registry()

    @registry.decoder("Text/X-Pairs; charset=utf-8")
    def decode(body: bytes) -> object:
        name, _, value = body.decode().partition("=")
        return {name: value}

    handler = handler_of(take_order, registry)

    assert handler.bind(b"id=1", "text/x-pairs") == {"order": Order(id=1)}
    assert refused(handler, b"id=x", "text/x-pairs").reason is Reason.INVALID_PAYLOAD
    assert refused(handler, b"\xff", "text/x-pairs").failure.error_type == "UnicodeDecodeError"


def test_json_needs_no_decoder_and_takes_none() -> None:
    with pytest.raises(ConfigurationError, match="JSON is built in"):
        Registry().decoder("application/problem+json")


def test_media_types_that_end_in_json_are_json() -> None:
    assert handler_of(take_order).bind(b'{"id":1}', "application/order+json") == {"order": Order(id=1)}


def test_the_schema_of_a_payload_shows_the_members_names_and_defaults() -> None:
    schema = handler_of(make_thumbnail).payload_schema()

    assert schema["required"] == ["image"]
    assert schema["properties"] == {
        "image": {"title": "Image", "type": "string"},
        "width": {"title": "Width", "type": "integer", "default": 100},
    }


def returning(hint: object = Any) -> Handler:
    def function() -> object: ...

    function.__annotations__["return"] = hint
    return handler_of(function)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ({"a": [1, "ä"]}, '{"a":[1,"ä"]}'),
        (Order(id=1), '{"id":1,"kind":"a","prices":{}}'),
        (Point(1), '{"x":1}'),
        (datetime(2026, 1, 1, tzinfo=UTC), '"2026-01-01T00:00:00Z"'),
        ("\\u0000", '"\\\\u0000"'),
    ],
)
def test_a_result_becomes_json(value: object, text: str | None) -> None:
    assert returning().serialise(value, max_bytes=100) == text


def test_a_result_of_another_type_than_announced_is_taken_as_it_is() -> None:
    assert returning(int).serialise({"a": 1}, max_bytes=100) == '{"a":1}'


def deep() -> object:
    value: list[object] = []
    for _ in range(1000):
        value = [value]
    return value


def circle() -> object:
    value: list[object] = []
    value.append(value)
    return value


def failing() -> Iterator[int]:
    yield 1
    raise SystemExit


@pytest.mark.parametrize(
    "value",
    [object(), "\ud800", b"\xff", "a\0", deep(), circle(), 10**5000, failing(), math.nan, [-math.inf]],
    ids=["object", "surrogate", "bytes", "nul", "deep", "circle", "long", "failing", "nan", "infinity"],
)
def test_a_result_that_is_no_json_for_postgres_is_refused(value: object) -> None:
    with pytest.raises(Refusal) as caught:
        returning().serialise(value, max_bytes=10**6)

    assert caught.value.reason is Reason.RESULT_UNSERIALISABLE


@pytest.mark.parametrize("hint", [float, list[float], dict[str, float], float | None])
def test_a_result_that_may_be_a_number_may_not_be_none(hint: object) -> None:
    value = {list[float]: [math.nan], dict[str, float]: {"a": math.nan}}.get(hint, math.nan)  # type: ignore[call-overload]

    with pytest.raises(Refusal, match="NaN"):
        returning(hint).serialise(value, max_bytes=100)


def test_a_result_that_is_too_large_is_refused_by_its_bytes() -> None:
    with pytest.raises(Refusal, match="allowed are 9") as caught:
        returning().serialise("ääää", max_bytes=9)

    assert caught.value.reason is Reason.RESULT_TOO_LARGE
    assert returning().serialise("ääää", max_bytes=10) == '"ääää"'


def test_a_handler_without_limits_follows_the_settings() -> None:
    assert handler_of(take_order).limits(DEFAULTS) == DEFAULTS


def test_a_handlers_limits_go_before_the_settings() -> None:
    registry = Registry()
    registry.task("it", max_attempts=2, retry_delay=1.5, retry_max_delay=timedelta(minutes=1), timeout=3)(
        take_order
    )

    (handler,) = registry.handlers

    policy = RetryPolicy(2, timedelta(seconds=1.5), timedelta(minutes=1))
    assert handler.limits(DEFAULTS) == Limits(policy, timedelta(seconds=3))


@pytest.mark.parametrize(
    ("given_delay", "given_longest", "delay", "longest"), [(7200, None, 7200, 7200), (None, 1, 1, 1)]
)
def test_one_delay_moves_the_other_where_they_would_contradict(
    given_delay: float | None, given_longest: float | None, delay: float, longest: float
) -> None:
    registry = Registry()
    registry.task("it", retry_delay=given_delay, retry_max_delay=given_longest)(take_order)

    policy = registry.handlers[0].limits(DEFAULTS).policy

    assert (policy.delay, policy.max_delay) == (timedelta(seconds=delay), timedelta(seconds=longest))


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": 1001},
        {"timeout": 0},
        {"timeout": math.nan},
        {"retry_delay": -1},
        {"retry_delay": 2, "retry_max_delay": 1},
    ],
)
def test_impossible_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="take_order: "):
        Registry().task("it", **options)(take_order)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": "soon"}, "timeout is 'soon', neither a timedelta nor seconds"),
        ({"deadline": 0}, "deadline must be more than 0"),
        ({"retry_on": None}, "retry_on: None is not an exception class"),
        ({"retry_on": [int]}, "retry_on: <class 'int'> is not an exception class"),
        ({"retry_on": OSError, "give_up_on": [OSError]}, "OSError is both in retry_on and in give_up_on"),
        ({"policies": {OSError: Policy()}, "give_up_on": OSError}, "OSError is both in policies and in give"),
        ({"policies": {OSError: 3}}, "policies: that of OSError is not a Policy"),
    ],
)
def test_limits_that_can_not_be_are_one_line_about_the_function_and_the_parameter(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"take_order: {says}"):
        Registry().task("it", **options)(take_order)


@pytest.mark.parametrize("name", ["", "a" * 201, "a\0", "a\n", "\ud800"])
def test_a_task_name_that_no_message_can_carry_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"take_order: .*task name"):
        Registry().task(name)(take_order)


def test_a_name_that_is_registered_twice_is_refused() -> None:
    registry = Registry()
    registry.task("it")(take_order)

    with pytest.raises(ConfigurationError, match=r"make_thumbnail: .* registered already, by .*take_order"):
        registry.task("it")(make_thumbnail)


def test_a_queue_has_one_default_task() -> None:
    registry = Registry()
    registry.task("a", default_for="email")(take_order)

    assert registry.default_name("email") == "a"
    assert registry.default_name("other") is None
    with pytest.raises(ConfigurationError, match="the default of queue 'email' is the task 'a' already"):
        registry.task("b", default_for=["reports", "email"])(take_order)


def test_handlers_are_listed_by_name() -> None:
    registry = Registry()
    for name in ("b", "a"):
        registry.task(name)(take_order)

    assert [handler.name for handler in registry.handlers] == ["a", "b"]
    assert registry.lookup("c") is None


def positional(image: str, /) -> None: ...


def starred(*images: str) -> None: ...


def keywords(**images: str) -> None: ...


def field_default(width: int = Field(default=3)) -> None: ...


async def two_contexts(one: Context, two: Context) -> None: ...


def unknown_name(image: str, size: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


def opaque(image: str, size: Registry) -> None: ...


def opaque_result(image: str) -> Registry:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (positional, "parameter 'image' is positional-only"),
        (starred, "parameter 'images' is variadic positional"),
        (keywords, "parameter 'images' is variadic keyword"),
        (field_default, "parameter 'width' has a Field as its default"),
        (two_contexts, "parameter 'two': there is a Context already"),
        (unknown_name, "the annotation of parameter 'size' can't be resolved: name 'Missing' is not defined"),
        (opaque, "parameter 'size' has a type that pydantic can't handle"),
        (opaque_result, "the return value has a type that pydantic can't handle"),
    ],
)
def test_a_signature_that_can_not_be_served_is_one_line(function: Callable[..., object], says: str) -> None:
    assert wrong(function).startswith(f"{function.__module__}.{function.__name__}: {says}")


def test_generators_and_objects_are_no_tasks() -> None:
    with pytest.raises(ConfigurationError, match="failing: a generator can't be a task"):
        Registry().task("it")(failing)
    with pytest.raises(ConfigurationError, match="a task is a function or a class, not int"):
        Registry().task("it")(1)  # type: ignore[type-var]  # as somebody may try


def test_an_annotation_may_name_what_is_defined_later_or_itself() -> None:
    def function(node: Node) -> Node:
        raise NotImplementedError

    body = b'{"children":[{}]}'

    assert handler_of(function).bind(body, JSON) == {"node": Node(children=[Node()])}


@pytest.mark.parametrize("is_process", [False, True])
def test_a_session_is_for_async_handlers_on_the_event_loop_only(*, is_process: bool) -> None:
    registry = Registry()

    def plain(session: AsyncSession) -> None: ...

    async def elsewhere(session: AsyncSession) -> None: ...

    registry.task("it", process=is_process)(elsewhere if is_process else plain)

    with pytest.raises(ConfigurationError, match="only an async handler on the event loop can have"):
        _ = registry.handlers


@pytest.mark.parametrize("limit", [0, -1, True, "512MiB", 1.5])
def test_a_memory_limit_is_a_number_of_bytes(limit: object) -> None:
    register = Registry().task("it", process=True, memory_limit=limit)  # type: ignore[arg-type]  # by mistake

    with pytest.raises(ConfigurationError, match="memory_limit is a number of bytes"):

        @register
        def it() -> None: ...

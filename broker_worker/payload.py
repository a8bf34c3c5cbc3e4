"""From a handler's signature to its arguments: which parameter gets what of a message's body."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, Union, get_args, get_origin

from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import SchemaError, SchemaValidator, from_json

from broker_worker.errors import ConfigurationError
from broker_worker.failure import Refusal, clean, fingerprint, type_name, validation_summary
from broker_worker.outcome import Failure, Reason

Given = TypeVar("Given")  # a body, or what a decoder made of it
Function = Callable[..., object]
Decoder = Callable[[bytes], object]
Arguments = dict[str, object]  # keyword arguments of a handler

SMALL = 16 * 1024  # bytes of a body in which each error may be looked for
COLLECTIONS = frozenset({"list", "tuple", "set", "frozenset", "dict"})  # kinds of schemas in pydantic-core
NO_SCHEMAS = frozenset({"default", "metadata", "serialization", "expected"})  # members that hold other things
MAX_SHOWN_BYTES = 500  # of what pydantic or an import has to say, in one line


class Injected:
    """Base of what the worker hands to a handler by annotation; never part of the payload."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Payload:
    """Reads bodies for one handler."""

    adapter: TypeAdapter[object]
    brief: SchemaValidator = field(repr=False)  # as the adapter's, but one error in a list is enough
    unpack: Callable[[object], Arguments]
    known: frozenset[str] = field(repr=False)  # names that the payload's own types use
    may_be_empty: bool = False

    def read_json(self, body: bytes) -> Arguments:
        """Validate a JSON body.

        Raises:
            Refusal: it is not JSON (malformed) or not what the handler takes (invalid_payload).
        """
        if self.may_be_empty and not body.strip():
            return self.unpack(None)
        # Pydantic takes these; JSON has no such numbers. In a large body it is seen fifty times
        # as fast that one byte is nowhere as that a word is nowhere.
        if (b"N" in body and b"NaN" in body) or (b"I" in body and b"Infinity" in body):
            check_json(body)
        validator = self.adapter.validator if len(body) <= SMALL else self.brief
        return self._read(validator.validate_json, body, verify=check_json)

    def read_value(self, value: object) -> Arguments:
        """Validate what a decoder made of a body; raise `Refusal` (invalid_payload)."""
        return self._read(self.brief.validate_python, value)

    def schema(self) -> dict[str, object]:
        """The JSON Schema of a body."""
        return self.adapter.json_schema()

    def _read(
        self,
        validate: Callable[[Given], object],
        given: Given,
        *,
        verify: Callable[[Given], None] | None = None,
    ) -> Arguments:
        try:
            return self.unpack(validate(given))
        except ValidationError as error:
            if verify is not None:
                verify(given)
            summary = validation_summary(error, known=self.known)
            raise refusal(Reason.INVALID_PAYLOAD, "ValidationError", summary) from None
        except BaseException as error:  # noqa: BLE001 - a validator is the user's code
            detail = "a validator of the payload raised this"  # its text may hold input values
            raise refusal(Reason.INVALID_PAYLOAD, type_name(error), detail) from None


def refusal(reason: Reason, error_type: str, message: str) -> Refusal:
    """Build the refusal of a body or a result."""
    text = clean(message, 1024)
    # list positions differ, the fault not
    kind = fingerprint(reason, error_type, re.sub("[0-9]+", "0", text))
    return Refusal(reason, Failure(error_type, text, fingerprint=kind))


def brief_validator(adapter: TypeAdapter[object]) -> SchemaValidator:
    """Make the adapter's validator anew, as one that leaves a collection at its first error.

    A body of 1 MiB can hold a million errors, which take a gigabyte and seconds, whatever becomes of them.
    """
    try:
        schema = _ending_early(adapter.core_schema)
        return SchemaValidator(schema, _use_prebuilt=False)  # else nested models would bring their own
    except (TypeError, SchemaError):
        # a release of pydantic that can't do it
        return typing.cast("SchemaValidator", adapter.validator)


def _ending_early(schema: typing.Any) -> typing.Any:  # noqa: ANN401 - a tree of dictionaries and lists, as pydantic makes it
    if type(schema) in {list, tuple}:
        return type(schema)(_ending_early(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    copy = {name: each if name in NO_SCHEMAS else _ending_early(each) for name, each in schema.items()}
    if isinstance(kind := copy.get("type"), str) and kind in COLLECTIONS:
        copy["fail_fast"] = True
    return copy


def check_json(body: bytes) -> None:
    """Raise `Refusal` (malformed) where `body` is not JSON by RFC 8259 within pydantic's limits."""
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:  # says what and where, never a value
        raise refusal(Reason.MALFORMED, "ContractError", f"the body is not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Signature:
    """What a handler takes and returns."""

    payload: Payload
    result: TypeAdapter[object]
    injected: Mapping[str, type]  # by parameter: what the worker hands over, not the message


def read_signature(
    function: Function, *, resources: Collection[type] = (), is_method: bool = False
) -> Signature:
    """Work out a handler's payload, its result, and the parameters that the worker fills.

    Those are annotated with a subclass of `Injected`, with SQLAlchemy's `AsyncSession`, or
    with one of `resources`. A method's first parameter is left out.

    Raises:
        ConfigurationError: one line that names the function and the parameter.
    """
    where = function_name(function)
    parameters = _parameters(function, where)
    if is_method:
        parameters = dict(list(parameters.items())[1:])
    hints = _hints(function, where)
    injected = {
        name: kind for name in parameters if (kind := _injected(hints.get(name), resources)) is not None
    }
    first_by_kind: dict[type, str] = {}
    for name, kind in injected.items():
        if first_by_kind.setdefault(kind, name) != name:
            raise ConfigurationError(f"{where}: parameter {name!r}: there is a {kind.__name__} already")
    taken = {name: parameter for name, parameter in parameters.items() if name not in injected}
    result = _result_adapter(_result_hint(hints), where)
    return Signature(_payload(taken, hints, where), result, injected)


def read_resources(
    function: Function, *, resources: Collection[type], is_method: bool = False
) -> dict[str, type]:
    """Find the resource for each parameter of a constructor, or of a resource itself.

    Raises:
        ConfigurationError: a parameter is no resource and has no default.
    """
    where = function_name(function)
    parameters = _parameters(function, where)
    if is_method:
        parameters = dict(list(parameters.items())[1:])
    hints = _hints(function, where)
    found = {}
    for name, parameter in parameters.items():
        kind = _injected(hints.get(name), resources)
        if kind is not None and kind in resources:
            found[name] = kind
        elif parameter.default is parameter.empty:
            raise ConfigurationError(f"{where}: parameter {name!r} is not annotated with a resource")
    return found


def is_session(kind: type) -> bool:
    """Say whether a class is SQLAlchemy's `AsyncSession`, without importing it here."""
    return any(
        base.__name__ == "AsyncSession" and base.__module__.startswith("sqlalchemy.ext.asyncio")
        for base in kind.__mro__
    )


def function_name(function: Function) -> str:
    """Name a function in a message: module and qualified name."""
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def one_line(error: BaseException) -> str:
    """Make one line of an error's text."""
    return clean(" ".join(str(error).split()), MAX_SHOWN_BYTES)


def _parameters(function: Function, where: str) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError, NameError) as error:
        raise ConfigurationError(f"{where}: its signature can't be read: {one_line(error)}") from error
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"{where}: parameter {name!r} is {parameter.kind.description}; a handler is called by names"
            )
        if isinstance(parameter.default, FieldInfo):
            raise ConfigurationError(
                f"{where}: parameter {name!r} has a Field as its default; write Annotated[<type>, Field(...)]"
            )
    return parameters


def _hints(function: Function, where: str) -> dict[str, object]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        place = _unresolvable(function)
        raise ConfigurationError(f"{where}: {place} can't be resolved: {one_line(error)}") from error


def _unresolvable(function: Function) -> str:
    """Find out which annotation it is, one at a time."""
    unwrapped = inspect.unwrap(function)
    for name, annotation in dict(getattr(unwrapped, "__annotations__", {})).items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            typing.get_type_hints(alone, globalns=getattr(unwrapped, "__globals__", {}))
        except Exception:  # noqa: BLE001 - an annotation is the user's code
            return "the return annotation" if name == "return" else f"the annotation of parameter {name!r}"
    return "an annotation"


def _result_hint(hints: dict[str, object]) -> object:
    hint = hints.get("return", object)
    return object if hint in (type(None), typing.NoReturn, typing.Never) else hint


def _payload(parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, object], where: str) -> Payload:
    if not parameters:
        return _made(TypeAdapter(object), lambda _: {}, frozenset(), may_be_empty=True)
    names = list(parameters)
    if len(names) == 1 and _is_model(hints.get(names[0])):
        adapter = _adapter(hints[names[0]], where, f"parameter {names[0]!r}")
        return _made(adapter, lambda value: {names[0]: value}, _known_names(adapter))
    return _members(parameters, hints, where)


def _members(parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, object], where: str) -> Payload:
    """Take the body's members by name.

    The fields are called f0, f1…, with the parameters' names as aliases: a
    parameter may be called `json` or `_id`, which a model's field may not. An alias
    of the user's own (for a member called `from`) goes before ours.
    """
    parameter_by_field = {f"f{place}": parameter for place, parameter in enumerate(parameters.values())}
    config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: parameter_by_field[name].name),
        protected_namespaces=(),
    )
    definitions: dict[str, typing.Any] = {
        name: (hints.get(p.name, object), Field() if p.default is p.empty else Field(default=p.default))
        for name, p in parameter_by_field.items()
    }
    try:
        model = create_model(where.rpartition(".")[2], __config__=config, **definitions)
    except Exception:
        for name in parameters:  # which of them is it?
            _adapter(hints.get(name, object), where, f"parameter {name!r}")
        raise

    plan = [(name, p.name, p.default is p.empty) for name, p in parameter_by_field.items()]

    def unpack(value: object) -> Arguments:
        assert isinstance(value, BaseModel)  # noqa: S101 - the adapter's own type
        members, given = value.__dict__, value.model_fields_set
        # what is absent is left to the function's own default
        return {
            parameter: members[name] for name, parameter, is_required in plan if is_required or name in given
        }

    adapter: TypeAdapter[object] = TypeAdapter(model)
    return _made(adapter, unpack, _known_names(adapter))


def _made(
    adapter: TypeAdapter[object],
    unpack: Callable[[object], Arguments],
    known: frozenset[str],
    *,
    may_be_empty: bool = False,
) -> Payload:
    return Payload(adapter, brief_validator(adapter), unpack, known, may_be_empty)


def _adapter(hint: object, where: str, what: str) -> TypeAdapter[object]:
    try:
        return TypeAdapter(hint)  # type: ignore[arg-type]  # a hint, as the signature has it
    except Exception as error:
        raise ConfigurationError(
            f"{where}: {what} has a type that pydantic can't handle: {one_line(error)}"
        ) from error


def _result_adapter(hint: object, where: str) -> TypeAdapter[object]:
    """Let NaN and Infinity be seen: pydantic alone makes `null` of them, and nobody would know.

    A model or a dataclass brings its own config; there its author decides.
    """
    try:
        return TypeAdapter(hint, config=ConfigDict(ser_json_inf_nan="constants"))  # type: ignore[arg-type]  # a hint, as the signature has it
    except Exception:  # noqa: BLE001 - it has a config of its own, or can't be handled at all
        return _adapter(hint, where, "the return value")


def _known_names(adapter: TypeAdapter[object]) -> frozenset[str]:
    """The member names that appear in the type itself, as opposed to those that come with input."""
    try:
        schema = adapter.json_schema()
    except Exception:  # noqa: BLE001 - some types can be validated but not described
        return frozenset()
    definitions = schema.get("$defs", {})
    return frozenset(name for each in (schema, *definitions.values()) for name in each.get("properties", {}))


def _injected(hint: object, resources: Collection[type]) -> type | None:
    kinds = [kind for kind in map(_class_of, _alternatives(hint)) if kind is not None]
    for kind in kinds:
        if kind in resources or issubclass(kind, Injected) or is_session(kind):
            return kind
    return None


def _class_of(kind: object) -> type | None:
    found = get_origin(kind) or kind
    return found if isinstance(found, type) else None


def _is_model(hint: object) -> bool:
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    return bool(kinds) and all(_is_model_class(get_origin(kind) or kind) for kind in kinds)


def _is_model_class(kind: object) -> bool:
    if not isinstance(kind, type):
        return False
    is_typed_dict = issubclass(kind, dict) and hasattr(kind, "__required_keys__")
    return issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind) or is_typed_dict


def _alternatives(hint: object) -> list[object]:
    """Look through Annotated, type aliases, Optional and unions."""
    if hasattr(hint, "__value__"):  # type X = …
        return _alternatives(hint.__value__)
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for member in get_args(hint) for kind in _alternatives(member)]
    return [hint]

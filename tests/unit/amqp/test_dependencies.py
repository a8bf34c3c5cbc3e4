"""What our subclasses and wrappers rely on in aiormq and pamqp, beyond what those promise.

An upgrade that takes any of it away shows here first, by name, and not as a daemon that stands still.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import requires, version

import aiormq
import aiormq.abc
import aiormq.connection
import pamqp.frame
import pytest
from pamqp import commands, decode

from broker_worker.amqp.connection import _RememberedSocket
from broker_worker.amqp.properties import FIELDS
from broker_worker.amqp.safe_decoding import install, verify_hooks


@pytest.mark.parametrize("package", ["aio-pika", "aiormq", "pamqp"])
def test_what_is_tested_is_within_the_range_that_is_announced(package: str) -> None:
    (announced,) = [each for each in requires("broker-worker") or () if each.startswith(package)]
    bounds = announced.removeprefix(package).split(",")
    least = next(bound.removeprefix(">=") for bound in bounds if bound.startswith(">="))
    below = next(bound.removeprefix("<") for bound in bounds if bound.startswith("<"))
    here = tuple(int(part) for part in version(package).split(".")[:2])

    assert tuple(map(int, least.split("."))) <= here
    assert here[0] < int(below)


@pytest.mark.parametrize("name", ["_on_close_frame", "close", "lock", "open", "basic_consume"])
def test_a_channel_has_the_steps_that_ours_step_into(name: str) -> None:
    assert any(name in vars(kind) for kind in aiormq.Channel.__mro__ if kind.__module__ != "aiormq.abc")


def test_a_channel_takes_frames_by_a_queue_and_says_when_it_is_closed() -> None:
    kinds = [kind for kind in aiormq.Channel.__mro__ if kind.__module__.startswith("aiormq.")]
    made = "\n".join(map(inspect.getsource, kinds))

    for name in ("write_queue", "_closing", "on_consumer_cancel_callbacks"):
        assert name in made


@pytest.mark.parametrize("function", [aiormq.connection.FrameReceiver.get_frame])
def test_frames_are_decoded_by_the_function_that_we_wrap(function: Callable[..., object]) -> None:
    install()

    verify_hooks()
    assert "pamqp.frame.unmarshal" in inspect.getsource(function)


def test_a_connection_takes_its_socket_from_a_factory() -> None:
    assert issubclass(_RememberedSocket, aiormq.connection.TransportFactory)
    assert "transport_factory" in inspect.signature(aiormq.connection.Connection.__init__).parameters


def test_pamqp_knows_each_property_by_the_flag_that_we_know() -> None:
    flags = commands.Basic.Properties.flags
    ours = {name: flag for flag, name in FIELDS if name != "octet"}

    for name, flag in ours.items():
        assert flags["message_type" if name == "type" else name] == flag
    assert flags["delivery_mode"] == 1 << 12
    assert flags["priority"] == 1 << 11


def test_pamqp_decodes_each_type_of_field_that_we_measure() -> None:
    for kind in b"tbBsuIilLfdDTVxSFA":
        assert bytes((kind,)) in decode.TABLE_MAPPING
    assert callable(pamqp.frame.marshal)
    assert aiormq.abc.ChannelFrame.marshall is not None

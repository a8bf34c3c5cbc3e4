"""What each fault of the broker asks of us: every reply code of AMQP 0-9-1, and what has none."""

from __future__ import annotations

import asyncio

import aiormq
import pytest
from aiormq.channel import exception_by_code as of_channel
from aiormq.connection import exception_by_code as of_connection
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import commands
from pamqp.exceptions import CLASS_MAPPING

from broker_worker.amqp.failures import is_missing, is_the_brokers, reply_code, translated
from broker_worker.amqp.publishing_channel import ReturnedError
from broker_worker.errors import BrokerUnavailableError, TopologyError
from broker_worker.testing.clock import in_virtual_time

OF_CHANNEL = (311, 313, 403, 404, 405, 406)
OF_CONNECTION = (320, 402, 501, 502, 503, 504, 505, 506, 530, 540, 541)
WITHOUT_A_CODE = [
    OSError("no route"),
    ConnectionResetError(),
    TimeoutError(),
    EOFError(),
    ChannelInvalidStateError("closed"),
    aiormq.AMQPConnectionError("Server connection unexpectedly closed"),
    aiormq.ConnectionClosed(None, None),
    BrokerUnavailableError("no sign of life from the broker for 30 s"),
]


def test_every_reply_code_of_the_protocol_is_in_one_of_the_tables() -> None:
    no_route = 312  # never closes anything: it says why a message came back

    assert {*OF_CHANNEL, *OF_CONNECTION, no_route} == set(CLASS_MAPPING)


@pytest.mark.parametrize("code", OF_CHANNEL)
def test_a_closed_channel_is_opened_again_and_what_is_missing_is_declared_before(code: int) -> None:
    error = of_channel(commands.Channel.Close(code, "why", 60, 20))

    assert (reply_code(error), is_missing(error), is_the_brokers(error)) == (code, code == 404, True)


@pytest.mark.parametrize("code", OF_CONNECTION)
def test_a_closed_connection_is_made_anew_whatever_its_code(code: int) -> None:
    error = of_connection(commands.Connection.Close(code, "why", 10, 50))

    assert (reply_code(error), is_missing(error), is_the_brokers(error)) == (code, False, True)


@pytest.mark.parametrize("error", WITHOUT_A_CODE, ids=repr)
def test_a_connection_that_went_without_a_word_is_made_anew(error: Exception) -> None:
    assert (reply_code(error), is_missing(error)) == (None, False)


def test_a_differing_topology_has_the_code_with_which_the_broker_says_so() -> None:
    assert reply_code(TopologyError("differs")) == 406


async def test_the_code_outlives_the_translation() -> None:
    with pytest.raises(BrokerUnavailableError) as caught, translated("consuming"):
        raise aiormq.ChannelAccessRefused("no")

    assert (reply_code(caught.value), is_missing(caught.value)) == (403, False)


@in_virtual_time
async def test_a_cancellation_that_the_library_answers_with_an_error_stays_one() -> None:
    async def connect() -> None:
        with translated("connecting"):
            try:
                await asyncio.sleep(3600)
            finally:
                raise aiormq.AMQPConnectionError("refused")

    connecting = asyncio.ensure_future(connect())
    await asyncio.sleep(1)
    connecting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await connecting


def test_a_wrong_password_is_no_reason_to_stop_asking() -> None:
    error = aiormq.ProbableAuthenticationError("ACCESS_REFUSED")

    assert reply_code(error) == 403


def test_a_return_is_no_fault_of_the_library() -> None:
    assert not is_the_brokers(ReturnedError())

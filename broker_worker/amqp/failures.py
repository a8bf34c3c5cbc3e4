"""Turn what the client library raises into our errors, each with one line of text."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import aiormq
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.exceptions import PAMQPException

from broker_worker.cancellation import cancels
from broker_worker.errors import BrokerUnavailableError, TopologyError

LIBRARY = (
    aiormq.AMQPError,
    ChannelInvalidStateError,
    PAMQPException,
    OSError,
    TimeoutError,
    EOFError,
    struct.error,
)
NO_VHOST = "Expected one of ['Connection.OpenOk']"  # how aiormq words the refusal of Connection.Open
NOT_FOUND = 404
CODE_BY_ERROR: dict[type[BaseException], int] = {
    aiormq.ChannelAccessRefused: 403,
    aiormq.ProbableAuthenticationError: 403,
    aiormq.ChannelNotFoundEntity: 404,
    aiormq.ChannelLockedResource: 405,
    aiormq.ChannelPreconditionFailed: 406,
    TopologyError: 406,
    aiormq.ConnectionFrameError: 501,
    aiormq.ConnectionSyntaxError: 502,
    aiormq.ConnectionCommandInvalid: 503,
    aiormq.ConnectionChannelError: 504,
    aiormq.ConnectionUnexpectedFrame: 505,
    aiormq.ConnectionResourceError: 506,
    aiormq.ConnectionNotAllowed: 530,
    aiormq.ConnectionNotImplemented: 540,
    aiormq.ConnectionInternalError: 541,
}


class ConnectionUnusableError(Exception):
    """The connection looks alive but does not do its work: another one is needed."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise BrokerUnavailableError for a failure of the broker or the library inside.

    On the loss of a connection aiormq rejects whoever waits with the cause, which
    may be `CancelledError` or a bare `Exception`. Only a cancellation of our own
    task is passed on as one, and always, whatever the library makes of it.
    """
    cancels_before = cancels()
    try:
        yield
    except asyncio.CancelledError as error:
        if cancels() > cancels_before:
            raise
        raise BrokerUnavailableError(f"{what}: the connection was lost") from error
    except Exception as error:
        if cancels() > cancels_before:
            raise asyncio.CancelledError from error
        if not is_the_brokers(error):
            raise
        raise BrokerUnavailableError(f"{what}: {describe(error)}") from error


def is_the_brokers(error: BaseException) -> bool:
    """Say whether `error` comes from the broker, the network or the library, and not from a bug of ours."""
    # a bare Exception and "<Connection …> closed" are how aiormq reports a lost connection
    return isinstance(error, LIBRARY) or type(error) in (Exception, RuntimeError)


def reply_code(error: BaseException | None) -> int | None:
    """Find AMQP's reply code in an error, or in what caused it."""
    while error is not None:
        for kind, code in CODE_BY_ERROR.items():
            if isinstance(error, kind):
                return code
        if isinstance(error, aiormq.ConnectionClosed | aiormq.ChannelClosed):
            said = error.args[0] if error.args else None
            return said if isinstance(said, int) else None
        error = error.__cause__
    return None


def is_missing(error: BaseException) -> bool:
    """Say whether to declare is what helps: an exchange or a queue is not there."""
    return reply_code(error) == NOT_FOUND


def describe(error: BaseException) -> str:
    """Say in one line what went wrong; never contains the URL's password."""
    if isinstance(error, aiormq.ProbableAuthenticationError | aiormq.AuthenticationError):
        return f"access refused (user, password and virtual host are right?): {_text(error)}"
    if NO_VHOST in str(error):
        return "no such virtual host, or this user has no right to it"
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    return _text(error)


def _text(error: BaseException) -> str:
    words = " ".join(str(argument) for argument in error.args if argument not in (None, ""))
    text = words or type(error).__name__
    return " ".join(text.split())[:300]

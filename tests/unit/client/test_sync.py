"""What becomes of a blocking client whose event loop can't be had: no server is needed for that."""

from __future__ import annotations

import asyncio
import errno
import threading
from concurrent.futures import Future
from typing import NoReturn

import pytest

from broker_worker.client import SyncClient
from broker_worker.errors import BrokerWorkerError, ConfigurationError

PATIENCE = 30  # seconds


def error_of_a_call(client: SyncClient) -> BaseException | None:
    """Make a call in a thread that nobody waits for, should it never return."""
    called: Future[None] = Future()

    def call() -> None:
        try:
            client.publish("report")
        except BaseException as error:  # noqa: BLE001 - it is what is asked for
            called.set_exception(error)
        else:
            called.set_result(None)

    threading.Thread(target=call, daemon=True).start()
    return called.exception(PATIENCE)


def test_a_call_without_an_event_loop_says_so_and_the_next_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    with SyncClient() as client:
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "new_event_loop", refuse)
            first, second = error_of_a_call(client), error_of_a_call(client)
        third = error_of_a_call(client)

    for error in (first, second):
        assert isinstance(error, BrokerWorkerError)
        assert "Too many open files" in str(error)
        assert isinstance(error.__cause__, OSError)
    assert isinstance(third, ConfigurationError)  # from its loop: there is no address of a broker

"""Connections under our own supervision: connect, serve until lost, connect again.

aio-pika's robust connection restores channels behind the user's back, gives up on
some of them without a word, and has neither backoff nor jitter. Here its plain
connection is used; whatever was on a connection ends with it and is built anew on
the next, which is one path for every fault. Channels are aiormq's (`channel.py`).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aio_pika
import aiormq
import aiormq.abc
from aiormq.abc import ChannelFrame
from aiormq.connection import TCPTransportFactory, TransportFactory, parse_heartbeat
from pamqp import commands
from pamqp.heartbeat import Heartbeat
from yarl import URL

from broker_worker.amqp import safe_decoding
from broker_worker.amqp.delivery_stream import DeliveryStream
from broker_worker.amqp.failures import ConnectionUnusableError, describe, is_the_brokers, translated
from broker_worker.amqp.patience import Reports, keep_up
from broker_worker.amqp.tls import TlsSockets
from broker_worker.amqp.urls import address, broker_urls
from broker_worker.cancellation import cancels
from broker_worker.errors import BrokerUnavailableError, ConfigurationError
from broker_worker.events import ConnectionChanged, Emit

HEARTBEAT = 10  # seconds; the broker closes after two without a sign of life
SILENCE = 3  # heartbeats without a byte from the broker, after which the connection is given up
LOOKS = 10  # at what came, in the time of one heartbeat
CONNECT_DEADLINE = 10.0  # seconds for one host: TCP, TLS and AMQP's opening together
FLUSH_DEADLINE = 1.5  # seconds for what is already queued to reach the socket
CLOSE_DEADLINE = 5.0  # seconds for an orderly goodbye, flush included; then the socket is dropped
BLOCKED = struct.pack(">I", commands.Connection.Blocked.index)
UNBLOCKED = struct.pack(">I", commands.Connection.Unblocked.index)


class Connection(aio_pika.Connection):
    """aio-pika's plain connection that can be closed in bounded time."""

    def __init__(self, url: URL, **kwargs: object) -> None:
        super().__init__(url, **kwargs)  # type: ignore[arg-type]  # passed through as aio_pika.connect gave them
        factory = TlsSockets() if url.scheme == "amqps" else TCPTransportFactory()
        self._socket = _RememberedSocket(factory)
        self.kwargs["transport_factory"] = self._socket
        self.blocked: str | None = None  # why the broker takes no publishes at the moment
        self.on_blocked: Callable[[], None] = _nothing  # called when that changes

    @property
    def wire(self) -> aiormq.abc.AbstractConnection:
        """The connection below, whose channels are used."""
        if self.transport is None:
            raise BrokerUnavailableError("the connection is closed")
        return self.transport.connection

    @property
    def deliveries(self) -> DeliveryStream:
        """Where the deliveries of its channels come out."""
        if self._socket.deliveries is None:
            raise BrokerUnavailableError("the connection was never made")
        return self._socket.deliveries

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self.transport is not None and self.transport.connection.is_opened

    def overhear(self) -> None:
        """Begin to take note of what the broker says of the connection itself."""
        self.deliveries.overhear(self._heard)

    async def silent(self) -> str:
        """Return, with the reason, once nothing has come for `SILENCE` heartbeats; that drops the socket."""
        heartbeat = parse_heartbeat(self.url.query["heartbeat"])
        await until_silent(self.deliveries, heartbeat)
        self.abort()
        return f"no sign of life from the broker for {SILENCE * heartbeat} s"

    async def lost(self) -> str:
        """Return, with the reason, once the connection is gone."""
        closing = self.wire.closing
        await asyncio.wait([closing])
        error = None if closing.cancelled() else closing.exception()
        return " ".join(str(error).split()) if error and str(error) else "the connection was lost"

    async def flush(self) -> None:
        """Wait until everything that was queued so far has been written, or the time is over."""
        written = asyncio.get_running_loop().create_future()
        frame = ChannelFrame.marshall(0, [Heartbeat()], drain_future=written)
        try:
            async with asyncio.timeout(FLUSH_DEADLINE):
                await self.wire.write_queue.put(frame)
                await written
        except TimeoutError:
            return  # the socket is stalled: there is nothing more to wait for

    async def close_soon(self) -> None:
        """Close within `CLOSE_DEADLINE`, also on a socket that takes nothing any more. Never raises."""
        if self.is_open:
            await self.flush()
        # Only the end of the transport wakes those who wait for it: a cancellation alone would wait, too.
        drop = asyncio.get_running_loop().call_later(CLOSE_DEADLINE - FLUSH_DEADLINE - 0.5, self.abort)
        try:
            async with asyncio.timeout(CLOSE_DEADLINE - FLUSH_DEADLINE):
                with translated("closing"):
                    await self.close()
        except (BrokerUnavailableError, TimeoutError):
            pass  # it is as good as closed: the socket is dropped
        finally:
            drop.cancel()
            self.abort()

    def abort(self) -> None:
        """Drop the socket without a word."""
        self._socket.abort()

    def _heard(self, frame: bytes) -> None:
        if frame.startswith((BLOCKED, UNBLOCKED)):
            is_blocked = frame.startswith(BLOCKED)
            self.blocked = frame[len(BLOCKED) + 1 :].decode(errors="replace") if is_blocked else None
            self.on_blocked()


class Link:
    """One supervised connection: `run` keeps it up and hands it to whoever works on it."""

    def __init__(
        self, name: str, read_url: Callable[[], str], emit: Emit, *, owner: str = "broker_worker"
    ) -> None:
        """Name it consume, publish or dead_letters; `read_url` is asked at every connect."""
        self.name = name
        self._read_url = read_url
        self._emit = emit
        self._client_name = f"{owner} {name}"
        self._connection: Connection | None = None
        self._is_stopped = False
        self._stopped = asyncio.Event()
        self._reports = Reports()

    @property
    def is_up(self) -> bool:
        """Whether there is a working connection now."""
        return self._connection is not None and self._connection.is_open

    async def run(self, serve: Callable[[Connection], Awaitable[None]]) -> None:
        """Connect, let `serve` work until the connection is lost, and again; until cancelled or closed.

        `serve` is cancelled when its connection is gone. BrokerUnavailableError from it
        means that another connection is needed; any other error ends `run`.
        """
        await keep_up(lambda: self._live(serve), self._stopped)

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[Connection]:
        """Connect once more, for what may cost the connection.

        Raises:
            BrokerUnavailableError: that is not possible now.
        """
        async with connected(self._url(), f"{self._client_name} apart") as connection:
            yield connection

    async def close(self) -> None:
        """End `run`; within 5 s, also when the broker does not answer."""
        self._stopped.set()
        if self._connection is not None:
            await self._connection.close_soon()

    async def _live(self, serve: Callable[[Connection], Awaitable[None]]) -> None:
        try:
            connection = await connect(self._url(), self._client_name)
        except BrokerUnavailableError as error:
            self._report_down(str(error))
            raise
        self._connection = connection
        self._reports.clear()
        self._emit(ConnectionChanged(self.name, is_up=True, detail=address(connection.url)))
        try:
            await _serve_until_lost(connection, serve)
        except BrokerUnavailableError as error:
            if not self._stopped.is_set():
                self._report_down(str(error))
                raise
        finally:
            self._connection = None
            await connection.close_soon()

    def _url(self) -> str:
        try:
            return self._read_url()
        except ConfigurationError as error:  # it was there at the start: its file is being replaced
            raise BrokerUnavailableError(str(error)) from error

    def _report_down(self, detail: str) -> None:
        if self._reports.is_due():
            self._emit(ConnectionChanged(self.name, is_up=False, detail=detail))


async def until_silent(stream: DeliveryStream, heartbeat: float) -> None:
    """Return once nothing has come for `SILENCE` heartbeats; never, where there are none.

    Looks are counted, and not seconds: a loop that stood still has not listened. Bytes count, and not
    frames: the largest takes minutes on a slow line.
    """
    if not heartbeat:
        await asyncio.Event().wait()
    looks, reads = 0, stream.reads
    while looks < SILENCE * LOOKS:
        await asyncio.sleep(heartbeat / LOOKS)
        looks = looks + 1 if reads == stream.reads else 0
        reads = stream.reads


async def connect(url: str, client_name: str) -> Connection:
    """Connect to the first host of `url` that answers.

    Raises:
        BrokerUnavailableError: none does; the text has a reason for each.
        ConfigurationError: `url` can't be read or is not acceptable.
    """
    safe_decoding.install()
    reasons = []
    for one in broker_urls(url, heartbeat=HEARTBEAT):
        try:
            return await _connect_to(one, client_name)
        except BrokerUnavailableError as error:
            reasons.append(str(error))
    raise BrokerUnavailableError("; ".join(reasons))


@asynccontextmanager
async def connected(url: str, client_name: str) -> AsyncIterator[Connection]:
    """Connect once, for a command; closes in the end."""
    connection = await connect(url, client_name)
    try:
        yield connection
    finally:
        await connection.close_soon()


async def _connect_to(url: URL, client_name: str) -> Connection:
    properties = {"connection_name": client_name, "product": "broker_worker"}
    connection = Connection(url, client_properties=properties)
    # Without the drop, a cancelled handshake would still wait for the goodbye of a silent peer.
    drop = asyncio.get_running_loop().call_later(CONNECT_DEADLINE, connection.abort)
    try:
        with translated(address(url)):
            async with asyncio.timeout(CONNECT_DEADLINE):
                await connection.connect()
    except BaseException:
        connection.abort()
        await connection.close_soon()
        raise
    finally:
        drop.cancel()
    connection.overhear()
    return connection


async def _serve_until_lost(connection: Connection, serve: Callable[[Connection], Awaitable[None]]) -> None:
    cancels_before = cancels()
    try:
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(_raise_with_the_reason(end))
                for end in (connection.silent(), connection.lost())
            ]
            await serve(connection)
            for watch in watches:
                watch.cancel()
    except BaseExceptionGroup as failures:
        if cancels() > cancels_before:  # a group with errors forgets that it was cancelled
            raise asyncio.CancelledError from failures
        raise _the_one(failures) from failures


async def _raise_with_the_reason(end: Awaitable[str]) -> None:
    raise BrokerUnavailableError(await end)


def _the_one(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Pick what ends the connection: an error that is not the broker's goes first."""
    causes = list(_leaves(failures))
    for cause in causes:
        if not isinstance(cause, BrokerUnavailableError | ConnectionUnusableError) and not is_the_brokers(
            cause
        ):
            return cause
    return BrokerUnavailableError(describe(causes[0]))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _nothing() -> None:
    """Stand for a listener where nobody wants to know."""


class _RememberedSocket(TransportFactory):
    """Opens the socket as aiormq does, and keeps a hand on it; deliveries are taken out on the way."""

    def __init__(self, factory: TransportFactory) -> None:
        self._factory = factory
        self._writer: asyncio.StreamWriter | None = None
        self.deliveries: DeliveryStream | None = None

    async def create(self, url: URL, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await self._factory.create(url, **kwargs)
        self.deliveries = DeliveryStream(reader)
        return self.deliveries, self._writer  # type: ignore[return-value]  # has what aiormq calls

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

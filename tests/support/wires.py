"""Both wires of a daemon, watched by one observer: what it tells Postgres, and what it lets RabbitMQ forget.

Before an ack is carried on, the observer asks Postgres, on a connection of its own, what is committed.
It can also hold commits and confirms back, and with them all that has to wait for them.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

import asyncpg
import pamqp.frame
from pamqp import commands, constants
from pamqp.header import ContentHeader

from broker_worker.message import EPOCH, TASK_ID
from tests.support.proxy import Write, proxy_to

PROTOCOL_HEADER = 8  # bytes that a client begins with, before its first frame
FRAME = struct.Struct(">BHI")  # type, channel, size of the payload
LENGTH = struct.Struct(">I")  # of a message of Postgres, itself included
TAKEN_BACK = "ROLLBACK TO"  # ends a savepoint, and not the transaction


class Copy(NamedTuple):
    """What names a message of a task: the copy of one epoch, or the first of all."""

    task: str
    epoch: int


@dataclass(frozen=True)
class Ack:
    """What one frame lets the broker forget."""

    forgotten: tuple[Copy, ...]
    is_multiple: bool
    unsettled: frozenset[str]  # tasks that have another delivery, which the broker still keeps


Published = set[tuple[str, Copy]]  # by the daemon; with the exchange
Judge = Callable[[asyncpg.Connection, Ack, Published], Awaitable[list[str]]]  # what is wrong


class Wires:
    """The addresses that lead a daemon through the observer, and what this has seen."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._asking = asyncio.Lock()
        self._passes = asyncio.Event()
        self._passes.set()
        self._loop = asyncio.get_running_loop()
        self._observer: asyncpg.Connection | None = None
        self._ended = asyncio.Event()
        self._marker = b""
        self._holds_confirms = False
        self.amqp_url = ""
        self.database_url = ""
        self.unsettled: dict[tuple[object, int], dict[int, Copy]] = {}  # by connection and channel
        self.published: Published = set()
        self.acks: list[Ack] = []
        self.held = 0  # commits and confirms that were kept waiting
        self.transactions = 0  # that the daemon began
        self.frames = 0  # from the daemon to RabbitMQ, but for heartbeats
        self.faults: list[str] = []  # of the daemon, as the judge found them; and of the observer

    def acked(self) -> set[str]:
        """The tasks of which the broker has forgotten a delivery."""
        return {copy.task for ack in list(self.acks) for copy in ack.forgotten}

    def count_acks(self, task: str) -> int:
        """How many deliveries of a task the broker has forgotten."""
        return sum(copy.task == task for ack in list(self.acks) for copy in ack.forgotten)

    def keeps(self) -> bool:
        """Whether the broker has still something that the daemon has, or an ack is being judged."""
        return any(list(self.unsettled.values())) or self._asking.locked()

    def hold(self, marker: str) -> None:
        """Hold every commit of a transaction that carried `marker`."""
        self._marker = marker.encode()
        self._passes.clear()

    def hold_confirms(self) -> None:
        """Hold every confirm of a message that the daemon published."""
        self._holds_confirms = True
        self._passes.clear()

    def release(self) -> None:
        """Let all go that is held."""
        self._loop.call_soon_threadsafe(self._passes.set)

    # --- for the observer's own loop ---------------------------------------------------

    async def run(self, amqp_url: str, database_url: str, ready: Callable[[], object]) -> None:
        amqp, database = urlsplit(amqp_url), urlsplit(database_url)
        self._loop.set_exception_handler(self._fault)
        self._observer = await asyncpg.connect(database_url)
        async with (
            proxy_to(amqp.hostname or "", amqp.port or 5672, lambda: AmqpWatch(self)) as to_rabbitmq,
            proxy_to(
                database.hostname or "", database.port or 5432, lambda: PostgresWatch(self)
            ) as to_postgres,
        ):
            self.amqp_url = through(amqp, to_rabbitmq.port)
            self.database_url = through(database._replace(query="sslmode=disable"), to_postgres.port)
            ready()
            await self._ended.wait()
        await self._observer.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)

    def is_marked(self, data: bytes) -> bool:
        return bool(self._marker) and self._marker in data

    async def pass_commit(self) -> None:
        if not self._passes.is_set():
            self.held += 1
            await self._passes.wait()

    async def pass_confirm(self) -> None:
        if self._holds_confirms:
            await self.pass_commit()

    async def settle(self, channel: tuple[object, int], tag: int, *, multiple: bool) -> None:
        """Judge what is about to be forgotten."""
        async with self._asking:
            deliveries = self.unsettled[channel]
            tags = [one for one in deliveries if multiple and (one < tag or tag == 0)]
            tags += [tag] if tag in deliveries else []
            if not tags:
                self.faults.append(f"an ack of {tag}, which is not unsettled")
            forgotten = tuple(deliveries.pop(one) for one in tags)
            left = frozenset(copy.task for others in self.unsettled.values() for copy in others.values())
            ack = Ack(forgotten, multiple, left)
            assert self._observer is not None
            self.faults += await self._judge(self._observer, ack, self.published)
            self.acks.append(ack)

    def _fault(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.faults.append(f"{context['message']}: {context.get('exception')!r}")


class AmqpWatch:
    """Sees deliveries, publishes and acks on one connection."""

    def __init__(self, wires: Wires) -> None:
        self._wires = wires
        self._sent = b""
        self._received = b""
        self._has_begun = False
        self._delivering: dict[int, commands.Basic.Deliver] = {}  # whose content header comes next
        self._publishing: dict[int, commands.Basic.Publish] = {}

    async def from_client(self, data: bytes, write: Write) -> None:
        self._sent += data
        if not self._has_begun and len(self._sent) >= PROTOCOL_HEADER:
            await write(self._sent[:PROTOCOL_HEADER])
            self._sent, self._has_begun = self._sent[PROTOCOL_HEADER:], True
        while self._has_begun and (frame := next_frame(self._sent)):
            self._wires.frames += frame[0] != constants.FRAME_HEARTBEAT
            await self._look_at_sent(frame)
            await write(frame)
            self._sent = self._sent[len(frame) :]

    async def from_server(self, data: bytes, write: Write) -> None:
        self._received += data
        while frame := next_frame(self._received):
            await self._look_at_received(frame)
            await write(frame)
            self._received = self._received[len(frame) :]

    async def _look_at_sent(self, raw: bytes) -> None:
        channel, frame = understood(raw)
        match frame:
            case commands.Basic.Publish():
                self._publishing[channel] = frame
            case ContentHeader() if channel in self._publishing:
                self._wires.published.add((self._publishing.pop(channel).exchange, named(frame)))
            case commands.Basic.Ack():
                await self._settle(channel, frame.delivery_tag, multiple=frame.multiple)
            case commands.Basic.Nack() if not frame.requeue:
                await self._settle(channel, frame.delivery_tag, multiple=frame.multiple)
            case commands.Basic.Reject() if not frame.requeue:
                await self._settle(channel, frame.delivery_tag, multiple=False)

    async def _settle(self, channel: int, tag: int | None, *, multiple: bool) -> None:
        await self._wires.settle((self, channel), tag or 0, multiple=multiple)

    async def _look_at_received(self, raw: bytes) -> None:
        channel, frame = understood(raw)
        if isinstance(frame, commands.Basic.Deliver):
            self._delivering[channel] = frame
        elif isinstance(frame, ContentHeader) and channel in self._delivering:
            tag = self._delivering.pop(channel).delivery_tag or 0
            self._wires.unsettled.setdefault((self, channel), {})[tag] = named(frame)
        elif isinstance(frame, commands.Basic.Ack):
            await self._wires.pass_confirm()


class PostgresWatch:
    """Sees transactions on one connection, and holds the commits that are to be held."""

    def __init__(self, wires: Wires) -> None:
        self._wires = wires
        self._sent = b""
        self._has_begun = False
        self._is_in_block = False
        self._is_marked = False

    async def from_client(self, data: bytes, write: Write) -> None:
        self._sent += data
        while message := next_message(self._sent, has_kind=self._has_begun):
            if self._has_begun:
                await self._look_at(message)
            self._has_begun = True  # the first message alone has no kind
            await write(message)
            self._sent = self._sent[len(message) :]

    async def from_server(self, data: bytes, write: Write) -> None:
        await write(data)

    async def _look_at(self, message: bytes) -> None:
        statement = statement_of(message)
        does_something = message[:1] in {b"Q", b"E"}  # a query, or a go to what was prepared
        self._wires.transactions += does_something and not self._is_in_block
        self._is_in_block |= statement.startswith("BEGIN")
        self._is_marked |= self._wires.is_marked(message)
        ends_itself = not self._is_in_block and message[:1] in {b"Q", b"S"}  # S: the end of what was prepared
        # an outcome in the transaction of its handler goes in one message with the commit
        commits = statement.startswith(("COMMIT", "END")) or statement.endswith("COMMIT;")
        if self._is_marked and (commits or ends_itself):
            await self._wires.pass_commit()
            self._is_marked = False
        if commits or (statement.startswith("ROLLBACK") and not statement.startswith(TAKEN_BACK)):
            self._is_in_block = self._is_marked = False


def next_frame(data: bytes) -> bytes:
    """The first frame of AMQP, when it is all there."""
    if len(data) < FRAME.size:
        return b""
    size = FRAME.size + FRAME.unpack_from(data)[2] + 1
    return data[:size] if len(data) >= size else b""


def understood(raw: bytes) -> tuple[int, object]:
    """The channel of a frame, and what it says; nothing of a body."""
    kind, channel, _ = FRAME.unpack_from(raw)
    if kind not in {constants.FRAME_METHOD, constants.FRAME_HEADER}:
        return channel, None
    return channel, pamqp.frame.unmarshal(raw)[2]


def named(header: ContentHeader) -> Copy:
    """The task and the epoch that a message is of; no name where it has none."""
    headers = header.properties.headers or {}
    epoch = headers.get(EPOCH, 0)
    assert isinstance(epoch, int)
    return Copy(str(headers.get(TASK_ID) or header.properties.message_id or ""), epoch)


def next_message(data: bytes, *, has_kind: bool) -> bytes:
    """The first message to Postgres, when it is all there."""
    if len(data) < has_kind + LENGTH.size:
        return b""
    size = has_kind + LENGTH.unpack_from(data, has_kind)[0]
    return data[:size] if len(data) >= size else b""


def statement_of(message: bytes) -> str:
    """What a query, or a statement that is to be prepared, says; nothing of any other message."""
    content = message[1 + LENGTH.size :]
    match message[:1]:
        case b"Q":
            return content.rstrip(b"\0").decode().lstrip().upper()
        case b"P":
            return content.split(b"\0")[1].decode().lstrip().upper()
        case _:
            return ""


def through(address: SplitResult, port: int) -> str:
    """The same address by way of a port of ours."""
    credentials = address.netloc.rpartition("@")[0]
    return urlunsplit(address._replace(netloc=f"{credentials}@127.0.0.1:{port}"))


@contextmanager
def wires(amqp_url: str, database_url: str, judge: Judge) -> Iterator[Wires]:
    """Put the observer before both servers, in a thread of its own: a daemon is waited for without a loop."""
    made: list[Wires] = []
    is_ready = threading.Event()

    async def observe() -> None:
        made.append(Wires(judge))
        await made[0].run(amqp_url, database_url, is_ready.set)

    def run() -> None:
        try:
            asyncio.run(observe())
        finally:
            is_ready.set()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run)
        is_ready.wait(30)
        if running.done():
            running.result()
        try:
            yield made[0]
        finally:
            made[0].end()
            running.result(30)

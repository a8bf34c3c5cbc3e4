"""The way of one program to one server: it injects what networks do, and shows the witness what passes.

A network delays, slices, holds back and cuts off; it never leaves bytes out of a stream that goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from tests.faults.records import Wire
from tests.faults.witness import Witness

LOOPBACK = "127.0.0.1"
CHUNK = 65_536
CUT_OFF = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset
MOST_SLICES = 512  # of one piece; the rest of it goes in larger ones
LARGER = 128
NUMBERS = count(1)

Piece = tuple[bytes, tuple[Wire, ...]]


class Reader(Protocol):
    """What understands the bytes of one connection."""

    def from_client(self, data: bytes) -> list[Piece]: ...

    def from_server(self, data: bytes) -> list[Piece]: ...

    def count_unsettled(self, queue: str) -> int: ...


@dataclass(slots=True, eq=False)
class Weather:
    """What the network does to each direction; of a connection, or of all that go through a gate."""

    latency: float = 0.0  # seconds for each chunk
    rate: float = 0.0  # bytes a second; 0: as fast as it can
    slices: bool = False  # a byte at a time
    holds_up: bool = False  # nothing goes from client to server
    holds_down: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self, **how: float | bool) -> None:
        for name, value in how.items():
            setattr(self, name, value)
        self._changed.set()
        self._changed = asyncio.Event()

    def clear(self) -> None:
        self.change(latency=0.0, rate=0.0, slices=False, holds_up=False, holds_down=False)

    async def flows(self, *, up: bool) -> None:
        """Return when this direction is not held back."""
        while self.holds_up if up else self.holds_down:
            await self._changed.wait()


class Carrier:
    """One connection on its way."""

    def __init__(self, gate: Gate, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.gate = gate
        self.process = gate.process
        self.name = f"{gate.name}#{next(NUMBERS)}"
        self.reader = gate.make_reader()
        self.weather = Weather()
        self._client, self._server = writers
        self.port: int = self._server.get_extra_info("sockname")[1]  # by which the server knows it

    def reset(self) -> None:
        """Cut it off at once; what was not carried on is lost."""
        for writer in (self._client, self._server):
            cut_off(writer)

    async def carry(self, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        """Carry both directions until one of them ends."""
        up = asyncio.ensure_future(self._carry(client, self._server, up=True))
        down = asyncio.ensure_future(self._carry(server, self._client, up=False))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in (up, down):
                way.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for writer in (self._client, self._server):
                writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        read = self.reader.from_client if up else self.reader.from_server
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._delay(len(data))
                for piece, records in read(data):
                    for weather in (self.gate.weather, self.weather):
                        await weather.flows(up=up)
                    if not all(self.gate.witness.see(record, self) for record in records):
                        self.reset()
                        return
                    await self._write(writer, piece)

    async def _delay(self, size: int) -> None:
        for weather in (self.gate.weather, self.weather):
            pause = weather.latency + (size / weather.rate if weather.rate else 0.0)
            if pause:
                await asyncio.sleep(pause)

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        if not (self.gate.weather.slices or self.weather.slices):
            writer.write(piece)
            await writer.drain()
            return
        few, rest = piece[:MOST_SLICES], piece[MOST_SLICES:]
        slices = [few[at : at + 1] for at in range(len(few))]
        slices += [rest[at : at + LARGER] for at in range(0, len(rest), LARGER)]
        for each in slices:
            writer.write(each)
            await writer.drain()
            await asyncio.sleep(0)


class Gate:
    """A port of ours that leads one program to one server."""

    def __init__(
        self,
        name: str,
        server: Callable[[], int],
        witness: Witness,
        make_reader: Callable[[], Reader],
        *,
        port: int,
        is_recorded: bool = True,
    ) -> None:
        self.name = name
        self.port = port
        self.process = name  # whose connections come now
        self.witness = witness
        self.make_reader = make_reader
        self.is_recorded = is_recorded
        self.weather = Weather()
        self.carriers: dict[str, Carrier] = {}
        self._server_port = server
        self._listener: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Take connections, which a closed gate refuses."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, LOOPBACK, self.port)

    def refuse(self) -> None:
        """Take no more connections; those that are there go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def reset(self) -> None:
        """Cut off all connections."""
        for carrier in list(self.carriers.values()):
            carrier.reset()

    async def close(self) -> None:
        """End it with all its connections."""
        self.refuse()
        self.reset()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._lead(client, client_writer)
        except asyncio.CancelledError:
            pass  # the gate is closed: nobody waits for this task but `close`
        finally:
            self._serving.discard(task)

    async def _lead(self, client: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        try:
            server, server_writer = await asyncio.open_connection(LOOPBACK, self._server_port())
        except OSError:
            cut_off(client_writer)
            return
        carrier = Carrier(self, (client_writer, server_writer))
        self.carriers[carrier.name] = carrier
        self.witness.see(Wire(kind="opened"), carrier)
        try:
            await carrier.carry(client, server)
        finally:
            del self.carriers[carrier.name]
            self.witness.see(Wire(kind="lost"), carrier)


def cut_off(writer: asyncio.StreamWriter) -> None:
    """Close a connection in such a way that its other side gets a reset."""
    own: socket.socket | None = writer.get_extra_info("socket")
    if own is not None:
        with contextlib.suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CUT_OFF)
    writer.transport.abort()

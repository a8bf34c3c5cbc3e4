"""The proxy carries everything on in any weather, and cuts off where a rule says so."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from broker_worker.local.network import free_ports
from tests.faults.postgres_wire import PostgresReader
from tests.faults.proxy import Carrier, Gate
from tests.faults.records import Wire, read
from tests.faults.witness import Rule, Trigger, Witness

START = struct.pack(">II", 8, 196_608)
READY = b"Z" + struct.pack(">I", 5) + b"I"
WRITE = b"DELETE FROM t\0"
COMMIT = b"Q" + struct.pack(">I", 4 + len(WRITE)) + WRITE

Talk = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """Says that it is ready after each whole question."""

    def __init__(self) -> None:
        self.heard = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1000):
                self.heard += data
                if self.heard == START or self.heard.endswith(WRITE):
                    writer.write(READY)
        writer.close()


class Way:
    """A gate before a server, and clients of it."""

    def __init__(self, gate: Gate, server: Server, witness: Witness, file: Path) -> None:
        self.gate, self.server, self.witness, self._file = gate, server, witness, file
        self.clients: list[asyncio.StreamWriter] = []

    async def connect(self) -> Talk:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gate.port)
        self.clients.append(writer)
        writer.write(START)
        assert await reader.readexactly(len(READY)) == READY
        return reader, writer

    async def ask(self, talk: Talk, question: bytes = COMMIT) -> bytes:
        talk[1].write(question)
        return await talk[0].readexactly(len(READY))

    def records(self) -> list[Wire]:
        self.witness.flush()
        return read(Wire, self._file)

    def rule(self, trigger: Trigger) -> None:
        def reset(carrier: Carrier) -> bool:
            carrier.reset()
            return False

        self.witness.rules.append(Rule(trigger, reset))


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Way]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    witness = Witness(folder / "wire.jsonl")
    port = listener.sockets[0].getsockname()[1]
    gate = Gate("gate", lambda: port, witness, PostgresReader, port=free_ports(1)[0])
    await gate.open()
    way = Way(gate, server, witness, folder / "wire.jsonl")
    try:
        yield way
    finally:
        for client in way.clients:
            client.close()
            with suppress(OSError):
                await client.wait_closed()
        await gate.close()
        witness.close()
        listener.close()


@pytest.fixture
async def way(tmp_path: Path) -> AsyncIterator[Way]:
    async with opened(tmp_path) as way:
        yield way


@pytest.mark.parametrize("weather", [{}, {"slices": True}, {"latency": 0.01}, {"rate": 1_000_000.0}])
async def test_all_is_carried_in_any_weather(way: Way, weather: dict[str, float]) -> None:
    way.gate.weather.change(**weather)
    talk = await way.connect()

    for _ in range(3):
        await way.ask(talk)

    assert way.server.heard == START + 3 * COMMIT
    assert [each.kind for each in way.records()] == ["opened", *3 * ["commit", "committed"]]


async def test_what_is_held_back_arrives_when_the_weather_clears(way: Way) -> None:
    talk = await way.connect()
    way.gate.weather.change(holds_up=True)
    asked = asyncio.ensure_future(way.ask(talk))
    await passes(lambda: asyncio.sleep(0), 50)
    assert way.server.heard == START

    way.gate.weather.clear()

    assert await asked == READY


async def passes(step: Callable[[], Awaitable[object]], times: int) -> None:
    for _ in range(times):
        await step()


async def test_the_reply_of_a_commit_can_get_lost(way: Way) -> None:
    talk = await way.connect()
    way.rule(Trigger("committed"))

    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await way.ask(talk)

    assert way.server.heard == START + COMMIT
    await until_lost(way)
    assert [(each.kind, each.is_passed) for each in way.records()][1:3] == [
        ("commit", True), ("committed", False),
    ]  # fmt: skip


async def test_a_commit_can_get_lost_before_it_arrives(way: Way) -> None:
    talk = await way.connect()
    way.rule(Trigger("commit", nth=2))
    await way.ask(talk)

    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await way.ask(talk)

    assert way.server.heard == START + COMMIT


async def until_lost(way: Way) -> None:
    async with asyncio.timeout(30):
        while way.gate.carriers:
            await asyncio.sleep(0.01)


async def test_a_closed_gate_refuses_and_an_open_one_takes_again(way: Way) -> None:
    way.gate.refuse()
    with pytest.raises(ConnectionRefusedError):
        await way.connect()

    await way.gate.open()

    assert await way.ask(await way.connect()) == READY


async def test_a_reset_is_a_reset_for_the_client(way: Way) -> None:
    talk = await way.connect()
    way.gate.reset()

    with pytest.raises(ConnectionResetError):
        await talk[0].readexactly(1)


@pytest.mark.parametrize(
    ("trigger", "met_at"),
    [
        (Trigger("ack"), 0),
        (Trigger("ack", nth=2), 3),
        (Trigger("ack", after="commit"), 3),
        (Trigger("ack", gates=frozenset({"other"})), None),
    ],
)
def test_a_trigger_counts_events_of_its_kind_from_the_one_before_on(
    trigger: Trigger, met_at: int | None
) -> None:
    events = ["ack", "publish", "commit", "ack"]

    met = [at for at, kind in enumerate(events) if trigger.is_met(Wire(kind=kind), "gate")]  # type: ignore[arg-type]

    assert met[:1] == ([] if met_at is None else [met_at])
